"""Several processes: the same gradients as one, the same weights in each, and one end for all."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from eval.bench.kill_test import differing, fingerprint
from pipeline.model import load_policy, save_policy
from pipeline.model.atomic import check_manifest, checkpoints, newest_intact
from tests import ranks
from tests.forked import run_module, run_ranks
from tests.test_launch import PPO

ROOT = Path(__file__).parents[1]


@pytest.fixture
def folder(tmp_path, tiny_policy, tokenizer) -> Path:
    save_policy(tiny_policy, tokenizer, tmp_path / "sft")
    return tmp_path


@pytest.fixture
def start(launch, folder) -> Callable[..., subprocess.Popen]:
    """`start(task, ...)`: two processes of ranks.py."""

    def start(task: str, *words: str, file: str = "accelerate_config.yaml") -> subprocess.Popen:
        config = ["--config_file", ROOT / file, "--num_processes", "2", "--mixed_precision", "no"]
        return launch(folder, *config, ROOT / "tests/ranks.py", task, folder, *words)

    return start


@pytest.fixture
def run(start) -> Callable[..., None]:
    """`run(task, ...)`: the same, until it has succeeded."""

    def run(*words: str, **options: str) -> None:
        launched = start(*words, **options)
        said, _ = launched.communicate(timeout=500)
        assert launched.returncode == 0, said[-4000:]

    return run


def alive(folder: Path) -> list[int]:
    """The processes that have `folder` in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes()
        except OSError:
            continue
        if str(folder).encode() in words and (pid := int(path.parent.name)) != os.getpid():
            found.append(pid)
    return found


def wait_for(condition: Callable[[], bool], seconds: float) -> float:
    """Seconds until the condition held; fails where it never did."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds
        time.sleep(0.05)
    return time.monotonic() - began


# ---- the same gradients ----


def in_two_ranks(function: Callable[[], object]) -> str:
    """The output of both processes, forked: who starts them makes no difference here."""
    ended = run_ranks(function)
    assert [process.returncode for process in ended] == [0, 0], [x.stderr[-4000:] for x in ended]
    return "".join(process.stdout for process in ended)


def test_a_reward_that_fails_on_one_process_ends_both_with_a_checkpoint(folder):
    in_two_ranks(lambda: ranks.reward_fails(folder))
    assert "failed on another process" in (folder / "failed-0").read_text()
    assert "reward own raised KeyError: 'late' (" in (folder / "failed-1").read_text()
    saved = newest_intact(folder / "fails")[0]
    assert saved.name == "checkpoint-2" and check_manifest(saved)["processes"] == 2


def test_two_processes_have_the_gradients_of_one_and_keep_the_same_weights(folder):
    in_two_ranks(lambda: ranks.gradients(folder, "2"))
    assert (folder / "agreed-0").exists() and (folder / "agreed-1").exists()
    for stage, gradients in (("ppo", ranks.ppo_gradients), ("sft", ranks.sft_gradients)):
        expected = gradients(folder, 8)
        assert max(gradient.abs().max() for gradient in expected.values()) > 1e-2
        others = {
            "one process, small micro-batches": gradients(folder, 1),
            "two processes": load_file(folder / f"{stage}-4.safetensors"),
            "two processes, small micro-batches": load_file(folder / f"{stage}-1.safetensors"),
        }
        if stage == "sft":
            others |= {
                f"two processes, {micro} rows in parts": load_file(
                    folder / f"sft-{micro}-tokens.safetensors"
                )
                for micro in (4, 2)
            }
        for name, found in others.items():
            assert found.keys() == expected.keys()
            for key, gradient in expected.items():
                distance = (found[key] - gradient).abs().max()
                assert distance < 1e-6, f"{stage}, {name}: {key} is off by {distance}"


def test_a_fixed_rollout_is_the_same_for_one_and_two_processes(folder):
    """The comparison above is of equals: half of the questions make half of the rollout."""
    trainer = ranks.ppo(folder, "out", num_minibatches=1)
    sample = ranks.fixed_rollout(trainer)
    questions = [problem.question for problem in ranks.PROBLEMS]
    whole, half = sample(questions, 2), sample(questions[4:], 2)
    for index in range(8):
        mask = whole.mask_completion_BC[8 + index]
        ids = whole.completion_ids_BC[8 + index][mask]
        assert torch.equal(half.completion_ids_BC[index][half.mask_completion_BC[index]], ids)
        torch.testing.assert_close(
            half.logprobs_BC[index][half.mask_completion_BC[index]],
            whole.logprobs_BC[8 + index][mask],
        )


def test_the_stage_of_two_processes_saves_and_says_so_once(folder):
    (folder / "ppo.yaml").write_text(PPO)
    config = ["--config", str(folder / "ppo.yaml"), "--model", str(folder / "sft")]
    said = in_two_ranks(run_module("stages.ppo", *config, "--output_dir", str(folder / "ppo")))
    assert said.count(f"PPO checkpoint: {folder / 'ppo'}") == 1
    assert (folder / "ppo" / "value_head.safetensors").is_file()


# ---- the same weights ----


@pytest.mark.slow
def test_the_weights_of_two_processes_are_equal_after_each_of_two_hundred_steps(folder, run):
    run("agree", "50")
    assert (folder / "agreed-0").exists() and (folder / "agreed-1").exists()


# ---- one end for all ----


@pytest.mark.slow
@pytest.mark.parametrize("way", ["killed", "raises", "leaves", "hangs", "memory"])
def test_when_one_process_is_gone_all_are_and_the_launcher_fails(folder, start, way):
    launched = start("die", way)
    said, _ = launched.communicate(timeout=600)
    assert launched.returncode != 0, said
    assert wait_for(lambda: not alive(folder), 5) < 5


@pytest.fixture
def slow_training(folder, start) -> Callable[[str], subprocess.Popen]:
    """`slow_training(out)`: a launcher whose two processes have begun to train."""

    def begin(out: str) -> subprocess.Popen:
        (folder / "slowly").touch()
        launched = start("train", out)
        begun = [folder / out / f"begun-{rank}" for rank in (0, 1)]
        wait_for(lambda: all(path.exists() for path in begun) or launched.poll() is not None, 300)
        assert launched.poll() is None, launched.communicate()[0]
        return launched

    return begin


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_when_the_launcher_ends_its_processes_save_and_end(folder, slow_training, signum):
    launched = slow_training("out")
    launched.send_signal(signum)
    seconds = wait_for(lambda: len(alive(folder)) == (launched.poll() is None), 30)
    launched.communicate(timeout=30)
    assert launched.returncode != 0
    saved = newest_intact(folder / "out")[0]
    assert check_manifest(saved)["processes"] == 2
    assert (saved / "rng_state_1.pth").exists() and (saved / "unlogged-1.json").exists()
    print(f"T19 gone after {seconds:.1f} s")


@pytest.mark.slow
def test_two_processes_resume_as_if_unbroken(folder, run, slow_training):
    run("train", "unbroken")
    slow_training("broken").terminate()
    wait_for(lambda: not alive(folder), 60)
    assert len(checkpoints(folder / "broken")) >= 1
    (folder / "slowly").unlink()
    run("train", "broken")
    ended = [fingerprint(newest_intact(folder / name)[0]) for name in ("unbroken", "broken")]
    assert differing(*ended) == []


@pytest.mark.slow
def test_fsdp2_trains_resumes_and_leaves_plain_folders(folder, run, monkeypatch):
    monkeypatch.setenv("THINKHEAD_CACHE", str(folder / "cache"))
    file = "configs/accelerate/fsdp2.yaml"
    run("fsdp", "unbroken", file=file)
    first = checkpoints(folder / "unbroken")[-1]
    shutil.copytree(first, folder / "resumed" / first.name)
    run("fsdp", "resumed", file=file)
    ended = [load_policy(folder / name)[0].state_dict() for name in ("unbroken", "resumed")]
    start = load_policy(folder / "sft")[0].state_dict()
    for key, weight in ended[0].items():
        assert torch.equal(weight, ended[1][key]), key
        assert not torch.equal(weight, start[key]), key
    in_checkpoint = load_policy(checkpoints(folder / "unbroken")[0])[0].state_dict()
    assert all(torch.equal(weight, in_checkpoint[key]) for key, weight in ended[0].items())
