"""DeepSpeed without a GPU: two processes of each launch file train what one process trains."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from pipeline.model import load_policy, save_policy
from stages.common import save_final_policy
from tests.deepspeed_ranks import ROLLOUTS, make_sft
from tests.sharded_ranks import by_sequence, one_process

ROOT = Path(__file__).parents[1]
TOLERANCE = 1e-5
KEYS = ("prompt_ids", "completion_ids", "old_logprobs", "old_values", "advantages")


@pytest.mark.slow
@pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed")
@pytest.mark.parametrize("name", ["zero2", "zero3"])
def test_two_processes_under_deepspeed_train_what_one_process_trains(
    tmp_path, tiny_policy, tokenizer, launch, name
):
    save_policy(tiny_policy, tokenizer, tmp_path / "sft")
    file = ROOT / f"configs/accelerate/{name}.yaml"
    options = ["--config_file", file, "--num_processes", 2, "--mixed_precision", "no"]
    started = launch(tmp_path, *options, ROOT / "tests/deepspeed_ranks.py", tmp_path, name)
    said, _ = started.communicate(timeout=900)
    assert started.returncode == 0, said[-6000:]

    trainer = make_sft(tmp_path, "one-sft", 1)
    trainer.train()
    save_final_policy(trainer, trainer.processing_class, tmp_path / "one-sft")
    same_weights(tmp_path / f"{name}-sft", tmp_path / "one-sft", tmp_path / "sft")
    same_rollouts(tmp_path, name)
    same_weights(tmp_path / f"{name}-ppo", tmp_path / f"{name}-resumed", tmp_path / "sft")


def same_weights(found: Path, expected: Path, start: Path) -> None:
    one, other, before = (load_policy(path)[0].state_dict() for path in (found, expected, start))
    for key, weight in other.items():
        torch.testing.assert_close(one[key], weight, atol=TOLERANCE, rtol=TOLERANCE)
    assert any((weight - before[key]).abs().max() > 1e-3 for key, weight in other.items())


def same_rollouts(folder: Path, name: str) -> None:
    """The second rollout is sampled from what the first one has trained."""
    expected = one_process(folder, "full", ROLLOUTS, "one-ppo", kl_coef=0.1)
    ranks = [torch.load(folder / f"{name}-{rank}.pt") for rank in (0, 1)]
    for step in range(ROLLOUTS):
        for key in KEYS:
            found = [row for rank in ranks for row in by_sequence(rank[step], key)]
            wanted = by_sequence(expected[step], key)
            assert len(found) == len(wanted) == 8
            for one, other in zip(found, wanted, strict=True):
                torch.testing.assert_close(one, other, atol=TOLERANCE, rtol=TOLERANCE)
