"""Rollouts under FSDP2: two processes sample what one process samples, without collectives."""

import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline.model import load_policy, save_policy
from pipeline.model.unsharded import gathered, meta_copy, named_weights

ROOT = Path(__file__).parents[1]
TOLERANCE = 1e-5


@pytest.fixture
def folder(tmp_path, tiny_policy, tokenizer) -> Path:
    save_policy(tiny_policy, tokenizer, tmp_path / "sft")
    return tmp_path


@pytest.fixture
def two_processes(folder) -> Callable[[int], None]:
    """`two_processes(rollouts)`: PPO under FSDP2 with and without LoRA, until it has succeeded."""

    def run(rollouts: int) -> None:
        command = [sys.executable, str(ROOT / "tests/sharded_ranks.py"), str(folder), str(rollouts)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr[-4000:]

    return run


def compare(folder: Path, rollouts: int) -> None:
    """The batches of two processes are the halves of those of one, and so is the final policy."""
    alone = runpy.run_path(str(ROOT / "tests/sharded_ranks.py"))
    for name in alone["RUNS"]:
        expected = alone["one_process"](folder, name, rollouts)
        ranks = [torch.load(folder / f"{name}-{rank}.pt") for rank in (0, 1)]
        steps = []
        for step in range(rollouts):
            batches = [rank[step] for rank in ranks]
            steps.append([int(batch["completion_mask"].sum(dim=1).max()) for batch in batches])
            for key in ("prompt_ids", "completion_ids", "old_logprobs", "old_values", "advantages"):
                found = [row for batch in batches for row in alone["by_sequence"](batch, key)]
                wanted = alone["by_sequence"](expected[step], key)
                assert len(found) == len(wanted) == 8
                for one, other in zip(found, wanted, strict=True):
                    torch.testing.assert_close(one, other, atol=TOLERANCE, rtol=TOLERANCE)
        assert any(first != second for first, second in steps), "no decoding of different lengths"


def test_two_processes_under_fsdp2_sample_what_one_process_samples(folder, two_processes):
    two_processes(1)
    compare(folder, 1)
    start, trained = (load_policy(folder / name)[0] for name in ("sft", "lora-final"))
    changed = [
        key
        for key, weight in trained.state_dict().items()
        if not torch.equal(weight, start.state_dict()[key])
    ]
    assert any("q_proj" in key for key in changed)  # the adapters are merged into the folder


@pytest.mark.slow
def test_five_rollouts_under_fsdp2_stay_those_of_one_process(folder, two_processes):
    two_processes(5)
    compare(folder, 5)


def test_a_copy_on_the_meta_device_takes_the_weights_and_gives_them_back(tiny_policy):
    ids_BT = torch.tensor([[3, 1, 2]])
    skeleton = meta_copy(tiny_policy)
    assert {p.device.type for p in skeleton.parameters()} == {"meta"}
    with gathered(named_weights(tiny_policy), skeleton) as whole, torch.no_grad():
        output = whole(input_ids=ids_BT)
    expected = tiny_policy(input_ids=ids_BT)
    assert torch.equal(output["logits"], expected["logits"])
    assert torch.equal(output["values"], expected["values"])
    assert {p.device.type for p in skeleton.parameters()} == {"meta"}


def test_tied_weights_stay_one_parameter_in_the_copy(make_model):
    model = make_model("qwen3", vocab_size=40, tie=True)
    with gathered(named_weights(model), meta_copy(model)) as whole:
        assert whole.lm_head.weight is whole.get_input_embeddings().weight


def test_a_copy_does_not_call_a_forward_that_a_trainer_has_replaced(tiny_policy):
    original = tiny_policy.forward
    tiny_policy.forward = lambda *args, **kwargs: original(*args, **kwargs)
    skeleton = meta_copy(tiny_policy)
    assert skeleton.forward.__func__ is type(tiny_policy).forward


def test_a_weight_that_the_sharded_model_lacks_is_named(tiny_policy):
    weights = named_weights(tiny_policy)
    del weights["lm_head.weight"]
    context = gathered(weights, meta_copy(tiny_policy))
    with pytest.raises(ValueError, match=r"no weight lm_head\.weight"), context:
        pass
