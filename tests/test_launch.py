"""How many processes `accelerate launch` really starts. Every failure of it on a CPU is silent."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.model import save_policy

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
disable_tqdm: true
"""


def launch(home: Path, *arguments: str) -> subprocess.CompletedProcess:
    """`accelerate launch` without a GPU; `home` holds no settings of the user's own."""
    variables = os.environ | {
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "HF_HOME": str(home),
    }
    variables.pop("ACCELERATE_USE_CPU", None)
    launched = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", *arguments],
        env=variables,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert launched.returncode == 0, launched.stderr
    return launched


def check(folder: Path, *arguments: str) -> list[str]:
    """What every process says of itself, sorted."""
    script = folder / "check.py"
    script.write_text(CHECK)
    lines = launch(folder, *arguments, str(script)).stdout.splitlines()
    return sorted(line for line in lines if line.startswith("process"))


def test_two_processes_know_of_each_other(tmp_path):
    # 1 of the first and 2 of the second make 3
    assert check(tmp_path, *CONFIG, "--num_processes", "2") == [
        "process 0 of 2, sum 3.0",
        "process 1 of 2, sum 3.0",
    ]


@pytest.mark.parametrize("arguments", [[], CONFIG], ids=["without the file", "with the file"])
def test_one_process_is_the_default(tmp_path, arguments):
    assert check(tmp_path, *arguments) == ["process 0 of 1, sum 1.0"]


def test_two_processes_train_one_ppo(tmp_path, tiny_policy, tokenizer):
    save_policy(tiny_policy, tokenizer, tmp_path / "sft")
    (tmp_path / "ppo.yaml").write_text(PPO)
    folders = ["--model", str(tmp_path / "sft"), "--output_dir", str(tmp_path / "ppo")]
    script = [str(ROOT / "stages/ppo.py"), "--config", str(tmp_path / "ppo.yaml")]
    launched = launch(tmp_path, *CONFIG, "--num_processes", "2", *script, *folders)
    # Said once, by the process that saves.
    assert launched.stdout.count(f"PPO checkpoint: {tmp_path / 'ppo'}") == 1
    assert (tmp_path / "ppo" / "value_head.safetensors").is_file()
