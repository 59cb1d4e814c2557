"""One run at a time in a folder: the second is refused in one line, a dead one holds nothing."""

import errno
import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from math import inf
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback

from eval import ablate, samples
from eval import run as eval_run
from eval import verifier as eval_verifier
from pipeline import folder_lock
from pipeline.folder_lock import (
    LOCK,
    FolderInUseError,
    differing_setting,
    lock_folder,
    one_at_a_time,
)
from pipeline.model import save_policy
from pipeline.model.atomic import check_manifest, checkpoints, staged
from pipeline.sft.trainer import ReasoningSFTConfig, ReasoningSFTTrainer
from stages import merge, ppo, recipe, sft, verifier


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """The commands set the number of threads; the tests behind this file keep theirs."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def forked(work: Callable[[], None]) -> tuple[int, int]:
    """(process, exit code once it has been waited for) of a child that does some work."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except FolderInUseError:
            code = 7
        finally:
            os._exit(code)
    return pid, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.fixture
def hold() -> Iterator[Callable[[Path], int]]:
    """`hold(folder)`: a process that has locked the folder and stays."""
    pids = []

    def start(folder: Path) -> int:
        ready, says = os.pipe()
        if (pid := os.fork()) == 0:
            try:
                with lock_folder(folder):
                    os.write(says, b"!")
                    while True:
                        signal.pause()
            finally:
                os._exit(1)
        pids.append(pid)
        assert os.read(ready, 1) == b"!"
        return pid

    yield start
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_a_second_run_is_refused_by_process_and_machine(tmp_path, hold):
    pid = hold(tmp_path / "run")
    message = rf"run is in use by process {pid} on {socket.gethostname()}; wait for it to end"
    with pytest.raises(FolderInUseError, match=message) as refused, lock_folder(tmp_path / "run"):
        pass
    assert "\n" not in str(refused.value)


ONE = ("--suite", "nano", "--limit", "1")
SHORT = (*ONE, "--checkpoint", "{policy}", "--max_sample_tokens", "8")
COMMANDS = {
    "sft": (sft, ["--config", "configs/nano/sft.yaml"]),
    "ppo": (ppo, ["--config", "configs/nano/ppo.yaml", "--model", "no/such"]),
    "verifier": (verifier, ["--checkpoint", "no/such"]),
    "merge": (merge, ["--adapter", "no/such"]),
    "recipe": (recipe, []),
    "eval.run": (eval_run, [*SHORT]),
    "eval.samples": (samples, [*SHORT, "--n", "2"]),
    "eval.verifier": (eval_verifier, [*SHORT]),
    "eval.ablate": (ablate, [*ONE]),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_with_an_output_folder_refuses_one_that_is_in_use(
    name, tiny_policy, tokenizer, tmp_path, hold, capsys
):
    policy, out = tmp_path / "policy", tmp_path / "out"
    save_policy(tiny_policy, tokenizer, policy)
    pid = hold(out)
    module, arguments = COMMANDS[name]
    arguments = [argument.format(policy=policy) for argument in arguments]
    with pytest.raises(SystemExit) as left:
        module.main([*arguments, "--output_dir", str(out)])
    lines = capsys.readouterr().err.rstrip().splitlines()
    assert left.value.code == 2
    assert lines[-1].startswith(f"error: {out} is in use by process {pid} on ")
    assert [path.name for path in out.iterdir()] == [LOCK]


def test_a_dry_run_needs_no_lock_and_writes_nothing(tmp_path, hold):
    hold(tmp_path / "out")
    arguments = ["--config", "configs/nano/sft.yaml", "--size", "16", "--shares", "wording=1"]
    sft.main([*arguments, "--output_dir", str(tmp_path / "out"), "--dry_run", "true"])
    sft.main([*arguments, "--output_dir", str(tmp_path / "new"), "--dry_run", "true"])
    assert not (tmp_path / "new").exists()


def test_a_lock_is_released_when_its_process_ends_in_any_way(tmp_path, hold):
    pid = hold(tmp_path)
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert (tmp_path / LOCK).exists()  # what a kill leaves
    with lock_folder(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert not (tmp_path / LOCK).exists()


def test_a_child_that_outlives_its_run_does_not_keep_the_lock(tmp_path):
    ready, says = os.pipe()

    def run() -> None:
        folder_lock._locks.clear()
        with lock_folder(tmp_path):
            child = os.fork()
            if child == 0:
                signal.pause()
                os._exit(0)
            os.write(says, child.to_bytes(4, "little"))
            os.kill(os.getpid(), signal.SIGKILL)

    assert forked(run)[1] == -signal.SIGKILL
    child = int.from_bytes(os.read(ready, 4), "little")
    os.kill(child, 0)  # it lives
    with lock_folder(tmp_path):
        pass
    os.kill(child, signal.SIGKILL)


def test_a_process_may_acquire_its_lock_again(tmp_path):
    with lock_folder(tmp_path), lock_folder(tmp_path / "."):
        with lock_folder(tmp_path):
            pass
        assert forked(lambda: lock_folder(tmp_path).__enter__())[1] == 7
    assert forked(lambda: lock_folder(tmp_path).__enter__())[1] == 0


def test_a_folder_that_stays_empty_is_removed(tmp_path):
    with pytest.raises(ValueError), lock_folder(tmp_path / "a" / "b"):
        raise ValueError
    assert list(tmp_path.iterdir()) == []
    with lock_folder(tmp_path / "a" / "b"):
        (tmp_path / "a" / "notes").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "notes"]


def test_a_link_has_the_lock_of_its_folder(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    with lock_folder(tmp_path / "run"):
        assert forked(lambda: lock_folder(tmp_path / "disk").__enter__())[1] == 7


def test_a_folder_that_is_replaced_stays_locked(tmp_path):
    folder = tmp_path / "run"
    for _ in range(2):
        with lock_folder(folder):
            with staged(folder) as staging:
                (staging / "config.json").write_text("{}")
            assert forked(lambda: lock_folder(folder).__enter__())[1] == 7
        assert [path.name for path in folder.iterdir()] == ["config.json"]
        assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert forked(lambda: lock_folder(folder).__enter__())[1] == 0


def test_only_rank_zero_acquires_the_lock(tmp_path, hold, monkeypatch):
    hold(tmp_path)
    monkeypatch.setenv("RANK", "1")
    with lock_folder(tmp_path):
        pass
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(FolderInUseError), lock_folder(tmp_path):
        pass


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_on_a_file_system_without_locks_a_run_warns_and_continues(
    tmp_path, monkeypatch, capsys, code
):
    def flock(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(folder_lock.fcntl, "flock", flock)
    with lock_folder(tmp_path):
        assert list(tmp_path.iterdir()) == []
    said = capsys.readouterr().err
    assert f"{tmp_path} lies on a file system without locks" in said and said.count("\n") == 1


class Second(TrainerCallback):
    """Another training in the same folder, in the middle of this one."""

    def __init__(self, make: Callable):
        self.make = make
        self.codes: list[int] = []

    def on_step_end(self, *args: object, **kwargs: object) -> None:
        self.codes.append(forked(lambda: self.make().train())[1])


def test_two_trainings_in_one_folder_do_not_disturb_each_other(tiny_policy, tokenizer, tmp_path):
    rows = [{"input_ids": [5, 6, 7, 8], "completion_mask": [0, 1, 1, 1]}] * 4

    def make() -> ReasoningSFTTrainer:
        args = ReasoningSFTConfig(
            output_dir=str(tmp_path / "run"),
            per_device_train_batch_size=4,
            max_steps=3,
            save_strategy="steps",
            save_steps=1,
            disable_tqdm=True,
        )
        data = Dataset.from_list(rows)
        return ReasoningSFTTrainer(
            tiny_policy, args, train_dataset=data, processing_class=tokenizer
        )

    first, second = make(), Second(make)
    first.add_callback(second)
    first.train()
    assert second.codes == [7, 7, 7]
    for folder in checkpoints(tmp_path / "run"):
        check_manifest(folder)
    assert len(checkpoints(tmp_path / "run")) == 3
    assert not list((tmp_path / "run").glob(".*"))
    assert forked(lambda: make().train())[1] == 0


def test_a_conversion_waits_for_that_of_another_process(tmp_path):
    order = []

    def second() -> None:
        with one_at_a_time(tmp_path / "file.lock"):
            order.append("second")

    with one_at_a_time(tmp_path / "file.lock"):
        waiting = threading.Thread(target=second)
        waiting.start()
        waiting.join(0.2)
        order.append("first")
    waiting.join(10)
    assert order == ["first", "second"]


def test_an_infinite_setting_is_the_null_that_it_was_stored_as():
    stored = {"value_temperature": None, "sizes": [1, 2]}
    now = {"value_temperature": inf, "sizes": (1, 2)}
    assert differing_setting(stored, now, added=frozenset()) is None
    other = {"value_temperature": 1.0, "sizes": [1, 2]}
    assert differing_setting(stored, other, added=frozenset()) == "value_temperature"
