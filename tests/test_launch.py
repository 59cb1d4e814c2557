"""How many processes `accelerate launch` really starts. Every failure of it on a CPU is silent."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

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


def _launch(folder: Path, *arguments: str) -> list[str]:
    """The lines that the processes print, sorted."""
    script = folder / "check.py"
    script.write_text(CHECK)
    variables = os.environ | {
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "HF_HOME": str(folder),  # a default_config.yaml of the user's own would decide
    }
    variables.pop("ACCELERATE_USE_CPU", None)
    launched = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", *arguments, str(script)],
        env=variables,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert launched.returncode == 0, launched.stderr
    return sorted(line for line in launched.stdout.splitlines() if line.startswith("process"))


def test_two_processes_know_of_each_other(tmp_path):
    # 1 of the first and 2 of the second make 3
    assert _launch(tmp_path, *CONFIG, "--num_processes", "2") == [
        "process 0 of 2, sum 3.0",
        "process 1 of 2, sum 3.0",
    ]


@pytest.mark.parametrize("arguments", [[], CONFIG], ids=["without the file", "with the file"])
def test_one_process_is_the_default(tmp_path, arguments):
    assert _launch(tmp_path, *arguments) == ["process 0 of 1, sum 1.0"]
