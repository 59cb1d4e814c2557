"""How many processes `accelerate launch` really starts. Every failure of it on a CPU is silent."""

import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from accelerate.commands.launch import main as accelerate_launch

from pipeline.model import save_policy
from pipeline.model.atomic import check_manifest, newest_intact
from tests.conftest import variables_of_a_launch
from tests.forked import run_forked

ROOT = Path(__file__).parents[1]
CONFIG = ["--config_file", str(ROOT / "accelerate_config.yaml")]
CHECK = """
import os

from pipeline.runtime import prepare_cpu

prepare_cpu()

import torch
from accelerate import Accelerator

accelerator = Accelerator()
total = accelerator.reduce(torch.tensor([1.0 + accelerator.process_index]), reduction="sum")
line = f"process {accelerator.process_index} of {accelerator.num_processes}, sum {total.item()}"
os.write(1, f"{line}\\n".encode())  # whole lines, whoever else is printing
accelerator.end_training()
"""
PPO = """
shares: wording=1
size: 8
num_rollouts: 2
questions_per_rollout: 2
completions_per_question: 2
num_minibatches: 2
ppo_epochs: 1
value_warmup: 1
max_completion_length: 8
overlap: allow
disable_tqdm: true
"""
OPTIONS = """
kl_controller: adaptive
kl_in: loss
kl_estimator: k3
zero_variance_groups: resample
curriculum: true
positive_nll_coef: 0.1
right_outcome: 0.0
overlong_penalty: 0.1
overlong_buffer: 2
policy_steps_per_rollout: 1
lam_alpha: 0.5
value_lam: 1.0
lora_r: 2
use_peft: true
"""


@pytest.fixture
def run(launch) -> Callable[..., str]:
    """`run(home, *arguments)`: what an `accelerate launch` that succeeds has said."""

    def run(home: Path, *arguments: object) -> str:
        launched = launch(home, *arguments)
        said, _ = launched.communicate(timeout=500)
        assert launched.returncode == 0, said
        return said

    return run


@pytest.fixture
def check(run, tmp_path) -> Callable[..., list[str]]:
    """What every process says of itself, sorted."""

    def check(*arguments: object) -> list[str]:
        script = tmp_path / "check.py"
        script.write_text(CHECK)
        said = run(tmp_path, *arguments, script).splitlines()
        return sorted(line for line in said if line.startswith("process"))

    return check


@pytest.mark.slow  # the training of two processes below implies it
def test_two_processes_know_of_each_other(check):
    # 1 of the first and 2 of the second make 3
    assert check(*CONFIG, "--num_processes", "2") == [
        "process 0 of 2, sum 3.0",
        "process 1 of 2, sum 3.0",
    ]


@pytest.mark.parametrize(
    "arguments",
    [[], pytest.param(CONFIG, marks=pytest.mark.slow)],
    ids=["without the file", "with the file"],
)
def test_one_process_is_the_default(tmp_path, arguments):
    script = tmp_path / "check.py"
    script.write_text(CHECK)

    def launch() -> None:
        sys.argv = ["accelerate launch", *arguments, str(script)]
        accelerate_launch()

    ended = run_forked(launch, variables=variables_of_a_launch(tmp_path))
    assert ended.returncode == 0, ended.stderr
    assert "process 0 of 1, sum 1.0" in ended.stdout.splitlines()


@pytest.fixture
def stage(tmp_path, tiny_policy, tokenizer) -> Callable[..., list[object]]:
    """`stage(config)`: what to launch for two processes of stages/ppo.py."""
    save_policy(tiny_policy, tokenizer, tmp_path / "sft")

    def arguments(config: str) -> list[object]:
        (tmp_path / "ppo.yaml").write_text(config)
        folders = ["--model", str(tmp_path / "sft"), "--output_dir", str(tmp_path / "ppo")]
        script = [ROOT / "stages/ppo.py", "--config", str(tmp_path / "ppo.yaml")]
        return [*CONFIG, "--num_processes", "2", *script, *folders]

    return arguments


def test_two_processes_train_one_ppo_and_save_when_the_launcher_is_killed(launch, stage, tmp_path):
    out, begun = tmp_path / "ppo", tmp_path / "ppo" / "log.jsonl"
    config = PPO.replace("num_rollouts: 2", "num_rollouts: 10000")
    launched = launch(tmp_path, *stage(config))
    until(lambda: (begun.is_file() and begun.stat().st_size) or launched.poll() is not None, 300)
    assert launched.poll() is None, launched.communicate()[0]
    launched.kill()
    launched.communicate(timeout=60)  # to the end of those that print
    until(lambda: not training_in(out), 30)
    saved = newest_intact(out)[0]
    assert check_manifest(saved)["processes"] == 2
    assert (saved / "rng_state_1.pth").exists() and (saved / "unlogged-1.json").exists()


def training_in(folder: Path) -> bool:
    """Whether a process has `folder` in its command line."""
    words = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            words.append(path.read_bytes())
    return any(str(folder).encode() in line for line in words)


def until(condition: Callable[[], object], seconds: float) -> None:
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("options", ["", OPTIONS], ids=["defaults", "options"])
def test_two_processes_train_one_ppo_to_its_end(run, stage, tmp_path, options):
    said = run(tmp_path, *stage(PPO + options))
    # Said once, by the process that saves.
    assert said.count(f"PPO checkpoint: {tmp_path / 'ppo'}") == 1
    assert (tmp_path / "ppo" / "value_head.safetensors").is_file()
    assert (tmp_path / "ppo" / "adapter").is_dir() == bool(options)
