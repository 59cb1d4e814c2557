"""A checkpoint is whole, or it is refused: damaged files, full disks, kills while it is written."""

import ctypes
import errno
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from pipeline.model import atomic
from pipeline.model.atomic import (
    MANIFEST,
    DamagedCheckpointError,
    check_manifest,
    checkpoints,
    newest_intact,
    replace_folder,
    write_manifest,
)
from pipeline.sft.trainer import ReasoningSFTConfig, ReasoningSFTTrainer
from pipeline.training import trainer_shell
from pipeline.training.checkpointing import one_line_write_errors
from tests.forked import run_forked

FILES = ("model.safetensors", "optimizer.pt", "sub/rng_state.pth", "trainer_state.json")


def checkpoint(folder: Path, seed: int) -> Path:
    """Files of random bytes with their manifest."""
    rng = random.Random(seed)
    for name in FILES:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(rng.randbytes(200 + rng.randrange(200)))
    write_manifest(folder, step=seed)
    return folder


# ---- damage ----


def test_a_whole_checkpoint_tells_its_facts(tmp_path):
    assert check_manifest(checkpoint(tmp_path / "checkpoint-4", 4)) == {"step": 4}


def test_a_file_that_came_later_is_no_part_of_the_checkpoint(tmp_path):
    folder = checkpoint(tmp_path / "checkpoint-4", 4)
    (folder / "notes.txt").write_text("good one")
    assert check_manifest(folder) == {"step": 4}


def flip(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def truncate(path: Path, rng: random.Random) -> None:
    os.truncate(path, rng.randrange(path.stat().st_size))


def remove(path: Path, rng: random.Random) -> None:
    path.unlink()


def test_a_hundred_damaged_checkpoints_are_refused_and_the_one_before_is_taken(tmp_path):
    older = checkpoint(tmp_path / "checkpoint-4", 4)
    rng = random.Random(0)
    damages = {"flip": flip, "truncate": truncate, "remove": remove, "swap": None}
    for number in range(100):
        newer = checkpoint(tmp_path / "checkpoint-8", 8)
        name = rng.choice([*FILES, MANIFEST])
        kind = rng.choice(list(damages))
        if kind == "swap":  # for a file of the checkpoint before, whole in itself
            shutil.copy(older / name, newer / name)
        else:
            damages[kind](newer / name, rng)
        with pytest.raises(DamagedCheckpointError, match="checkpoint-8 is damaged: ") as damaged:
            check_manifest(newer)
        assert "\n" not in str(damaged.value), (number, kind, name)
        found, complaints = newest_intact(tmp_path)
        assert found == older and len(complaints) == 1, (number, kind, name)
        shutil.rmtree(newer)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "optimizer.pt").unlink(), "optimizer.pt is missing"),
        (
            lambda f: (f / "optimizer.pt").write_bytes(b"12345"),
            "optimizer.pt has 5 bytes instead of",
        ),
        (
            lambda f: flip(f / "optimizer.pt", random.Random(0)),
            "optimizer.pt does not have the SHA",
        ),
        (lambda f: (f / MANIFEST).unlink(), "it has no manifest.json, which is written last"),
        (lambda f: (f / MANIFEST).write_text("[]"), "its manifest.json has changed"),
    ],
)
def test_a_refusal_names_the_file_the_rule_and_the_remedy(tmp_path, damage, message):
    folder = checkpoint(tmp_path / "checkpoint-4", 4)
    damage(folder)
    with pytest.raises(DamagedCheckpointError, match=message) as refused:
        check_manifest(folder)
    assert str(refused.value).startswith(str(folder))
    assert "resume_from_checkpoint=last" in str(refused.value)


def test_a_manifest_cannot_point_outside_of_its_folder(tmp_path):
    folder = checkpoint(tmp_path / "checkpoint-4", 4)
    (tmp_path / "secret").write_text("s")
    content = json.loads((folder / MANIFEST).read_text())
    content["files"]["../secret"] = {"bytes": 1, "sha256": atomic._sha256(tmp_path / "secret")}
    content["sha256"] = atomic._content_hash(content)
    (folder / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(DamagedCheckpointError, match=r"names \.\./secret, which lies outside"):
        check_manifest(folder)


def test_the_newest_is_the_highest_number_and_nothing_else_is_looked_at(tmp_path):
    for step in (4, 12, 8):
        checkpoint(tmp_path / f"checkpoint-{step}", step)
    (tmp_path / "checkpoint-99x").mkdir()
    (tmp_path / "checkpoint-100").write_text("a file")
    assert [path.name for path in checkpoints(tmp_path)] == [
        "checkpoint-12",
        "checkpoint-8",
        "checkpoint-4",
    ]
    assert newest_intact(tmp_path) == (tmp_path / "checkpoint-12", [])
    assert newest_intact(tmp_path / "nowhere") == (None, [])


# ---- a trainer ----


@pytest.fixture
def make(tiny_policy, tokenizer, tmp_path) -> Callable[..., ReasoningSFTTrainer]:
    rows = [{"input_ids": [5, 6, 7, 8], "completion_mask": [0, 1, 1, 1]}] * 4

    def make(**options: object) -> ReasoningSFTTrainer:
        args = ReasoningSFTConfig(
            **{
                "output_dir": str(tmp_path / "run"),
                "per_device_train_batch_size": 4,
                "max_steps": 3,
                "save_strategy": "steps",
                "save_steps": 1,
                "disable_tqdm": True,
                **options,
            }
        )
        data = Dataset.from_list(rows)
        return ReasoningSFTTrainer(
            tiny_policy,
            args,
            train_dataset=data,
            eval_dataset=data,
            processing_class=tokenizer,
        )

    return make


def names(folder: Path) -> list[str]:
    return [path.name for path in checkpoints(folder)]


def test_last_skips_what_is_damaged_and_says_so(make, tmp_path, capsys):
    make().train()
    flip(tmp_path / "run" / "checkpoint-3" / "optimizer.pt", random.Random(0))
    capsys.readouterr()
    trainer = make(max_steps=2)
    trainer.train(resume_from_checkpoint="last")
    said = capsys.readouterr().out
    assert "checkpoint-3 is damaged: optimizer.pt does not have the SHA-256" in said
    assert f"going on from {tmp_path / 'run' / 'checkpoint-2'}" in said


@pytest.mark.parametrize("asked", ["last", True])
def test_where_none_is_whole_the_run_does_not_start(make, tmp_path, asked):
    make(max_steps=1).train()
    (tmp_path / "run" / "checkpoint-1" / "scheduler.pt").unlink()
    message = r"holds no checkpoint-N that is whole; start without it \(.*scheduler.pt is missing\)"
    with pytest.raises(DamagedCheckpointError, match=message):
        make().train(resume_from_checkpoint=asked)


def test_a_damaged_checkpoint_that_is_asked_for_by_name_is_refused(make, tmp_path):
    make(max_steps=1).train()
    flip(tmp_path / "run" / "checkpoint-1" / "model.safetensors", random.Random(0))
    with pytest.raises(DamagedCheckpointError, match=r"model\.safetensors does not have the SHA"):
        make().train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-1"))


def test_a_checkpoint_of_the_model_alone_is_no_place_to_resume_from(make):
    make(max_steps=1, save_only_model=True).train()
    with pytest.raises(DamagedCheckpointError, match="was saved with save_only_model"):
        make().train(resume_from_checkpoint="last")


def test_a_run_with_other_threads_is_told_that_it_ends_otherwise(make, tmp_path, capsys):
    make(max_steps=1).train()
    folder = tmp_path / "run" / "checkpoint-1"
    write_manifest(folder, **{**check_manifest(folder), "threads": 64, "processes": 2})
    capsys.readouterr()
    make(max_steps=1).train(resume_from_checkpoint="last")
    said = capsys.readouterr().out
    assert "saved with processes=2, resumed with processes=1: the run goes on, but" in said
    assert "saved with threads=64, resumed with threads=1" in said


def test_controllers_that_do_not_fit_are_refused(make, monkeypatch):
    make(max_steps=1).train()
    trainer = make()
    monkeypatch.setattr(ReasoningSFTTrainer, "controllers", {"kl": object()})
    with pytest.raises(
        ValueError, match=r"saved with the controllers \[\], and this run has \['kl'\]"
    ):
        trainer.train(resume_from_checkpoint="last")


def test_a_checkpoint_holds_no_pickle_of_the_arguments(make, tmp_path):
    make(max_steps=1, hub_token="hf_canary").train()
    for path in (tmp_path / "run" / "checkpoint-1").rglob("*"):
        assert path.is_dir() or b"hf_canary" not in path.read_bytes(), path


@pytest.mark.parametrize(("limit", "kept"), [(1, [3]), (2, [3, 2]), (None, [3, 2, 1])])
def test_the_newest_checkpoints_are_kept(make, tmp_path, limit, kept):
    make(save_total_limit=limit).train()
    assert names(tmp_path / "run") == [f"checkpoint-{step}" for step in kept]


def test_a_future_that_was_given_up_goes_first(make, tmp_path):
    make().train()
    make(save_total_limit=2, max_steps=2).train(
        resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-1")
    )
    assert names(tmp_path / "run") == ["checkpoint-2", "checkpoint-1"]


def test_the_best_checkpoint_is_kept_and_named_where_it_lies(make, tmp_path):
    trainer = make(
        save_total_limit=1,
        eval_strategy="steps",
        eval_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=True,  # the first is the worst, and so the best
        learning_rate=0.1,
    )
    trainer.train()
    best = tmp_path / "run" / "checkpoint-1"
    assert trainer.state.best_model_checkpoint == str(best)
    assert best.is_dir()


# ---- a full disk ----


def full(*args: object, **kwargs: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_in_torch(*args: object, **kwargs: object) -> None:
    raise RuntimeError("[enforce fail at inline_container.cc:668] . unexpected pos 64 vs 0")


def full_in_safetensors(*args: object, **kwargs: object) -> None:
    raise SafetensorError("Error while serializing: I/O error: No space left on device")


STAGES = {
    "weights": lambda patch: patch(ReasoningSFTTrainer, "_save", full_in_safetensors),
    "optimizer": lambda patch: patch(
        ReasoningSFTTrainer, "_save_optimizer_and_scheduler", full_in_torch
    ),
    "random numbers": lambda patch: patch(ReasoningSFTTrainer, "_save_rng_state", full_in_torch),
    "manifest": lambda patch: patch(trainer_shell, "write_manifest", full),
    "directory": lambda patch: patch(atomic, "_sync_path", full),
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_full_disk_leaves_the_old_checkpoint_and_says_what_is_left(
    make, tmp_path, monkeypatch, stage
):
    make(max_steps=1).train()
    before = check_manifest(tmp_path / "run" / "checkpoint-1")
    STAGES[stage](monkeypatch.setattr)
    with pytest.raises(
        OSError, match=r"checkpoint-2 could not be saved: .* bytes are free"
    ) as error:
        make().train(resume_from_checkpoint="last")
    assert "checkpoint-1 is as it was; free space" in str(error.value)
    assert "\n" not in str(error.value)
    monkeypatch.undo()
    assert names(tmp_path / "run") == ["checkpoint-1"]
    assert check_manifest(tmp_path / "run" / "checkpoint-1") == before
    assert list((tmp_path / "run").glob(".*")) == []
    make().train(resume_from_checkpoint="last")
    assert names(tmp_path / "run")[0] == "checkpoint-3"


CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000  # of linux/sched.h
NOBODY_MAY = 77


def mount_small_disk(disk: Path) -> None:
    """A disk of ten megabytes, as root of a user namespace of this process alone."""
    libc, me = ctypes.CDLL(None, use_errno=True), (os.getuid(), os.getgid())
    if libc.unshare(CLONE_NEWUSER | CLONE_NEWNS):
        sys.exit(NOBODY_MAY)
    Path("/proc/self/setgroups").write_text("deny")
    for name, number in zip(("uid_map", "gid_map"), me, strict=True):
        Path(f"/proc/self/{name}").write_text(f"0 {number} 1")
    if libc.mount(b"small", str(disk).encode(), b"tmpfs", 0, b"size=10m"):
        sys.exit(NOBODY_MAY)


def fill_small_disk(disk: Path, how: Callable[..., object]) -> None:
    """Two checkpoints, of which the second finds no room; prints the error and the newest one."""
    mount_small_disk(disk)
    for number, megabytes in ((1, 4), (2, 8)):
        folder = disk / f"checkpoint-{number}"
        made = disk / ".saving" / folder.name
        made.mkdir(parents=True)
        try:
            with one_line_write_errors(folder):
                how({"w": torch.zeros(megabytes << 18)}, made / "weights")
                write_manifest(made)
                replace_folder(made, folder)
        except OSError as error:
            assert number == 2
            print(error)
    print(newest_intact(disk)[0])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="namespaces of Linux")
@pytest.mark.parametrize("how", [torch.save, save_file], ids=["torch", "safetensors"])
def test_a_disk_of_ten_megabytes_that_really_is_full(tmp_path, how):
    disk = tmp_path / "disk"
    disk.mkdir()
    done = run_forked(lambda: fill_small_disk(disk, how))
    if done.returncode == NOBODY_MAY:
        pytest.skip("this machine lets nobody mount a small disk")
    assert done.returncode == 0, done.stderr
    error, left = done.stdout.splitlines()
    assert "checkpoint-2 could not be saved: " in error
    assert "checkpoint-1 is as it was; free space" in error
    assert left == str(disk / "checkpoint-1")


# ---- kills while saving ----


def save(output_dir: Path, step: int, megabytes: int) -> None:
    """A checkpoint as AtomicCheckpoints writes it, of nothing but numbers."""
    folder = output_dir / f"checkpoint-{step}"
    made = output_dir / trainer_shell.SAVING / folder.name
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    for name in ("model", "optimizer"):
        numbers = torch.full((megabytes << 17,), float(step))
        save_file({"w": numbers}, made / f"{name}.safetensors")
    write_manifest(made, step=step)
    replace_folder(made, folder)


def kills_while_saving(output_dir: Path, *, kills: int, megabytes: int) -> int:
    """How many of the kills fell while a checkpoint was being written."""
    save(output_dir, 1, megabytes)
    rng, caught = random.Random(0), 0
    for _ in range(kills):
        step = newest_intact(output_dir)[0].name.rpartition("-")[2]
        if (child := os.fork()) == 0:
            for later in range(int(step) + 1, int(step) + 100):
                save(output_dir, later, megabytes)
            os._exit(1)
        while not (output_dir / trainer_shell.SAVING).exists():
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.1))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        caught += any((output_dir / trainer_shell.SAVING).iterdir())
        newest, complaints = newest_intact(output_dir)
        assert complaints == []
        value = float(newest.name.rpartition("-")[2])
        for name in ("model", "optimizer"):
            assert (load_file(newest / f"{name}.safetensors")["w"] == value).all()
        for path in checkpoints(output_dir)[2:]:
            shutil.rmtree(path)
    return caught


def test_kills_while_saving_leave_whole_checkpoints(tmp_path):
    assert kills_while_saving(tmp_path, kills=4, megabytes=2) >= 1


@pytest.mark.slow
def test_twenty_kills_while_saving_leave_whole_checkpoints(tmp_path):
    caught = kills_while_saving(tmp_path, kills=20, megabytes=12)
    print(f"T3 20/20 whole, {caught} kills while a checkpoint was being written")
    assert caught >= 10
