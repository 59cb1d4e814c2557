"""Rollouts under FSDP2: two processes sample what one process samples, without collectives."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

from pipeline.model import load_policy, save_policy
from pipeline.model.unsharded import gathered, meta_copy, named_weights
from pipeline.ppo.rollout import rollout_of_ids, score_rollout
from pipeline.scoring import Scores
from pipeline.training.fsdp import check_adapters_can_be_saved
from tests.forked import run_ranks
from tests.sharded_ranks import RUNS, by_sequence, one_process, rank_main

TOLERANCE = 1e-5


@pytest.fixture
def folder(tmp_path, tiny_policy, tokenizer) -> Path:
    save_policy(tiny_policy, tokenizer, tmp_path / "sft")
    return tmp_path


def two_processes(folder: Path, names: Sequence[str], rollouts: int) -> None:
    """Run PPO under FSDP2 until it has succeeded; `names` are some of RUNS."""
    for done in run_ranks(lambda: rank_main(folder, names, rollouts)):
        assert done.returncode == 0, done.stderr[-4000:]


def compare(folder: Path, names: Sequence[str], rollouts: int) -> None:
    """The batches of two processes are the halves of those of one, and so is the final policy."""
    for name in names:
        expected = one_process(folder, name, rollouts)
        ranks = [torch.load(folder / f"{name}-{rank}.pt") for rank in (0, 1)]
        steps = []
        for step in range(rollouts):
            batches = [rank[step] for rank in ranks]
            steps.append([int(batch["completion_mask"].sum(dim=1).max()) for batch in batches])
            for key in ("prompt_ids", "completion_ids", "old_logprobs", "old_values", "advantages"):
                found = [row for batch in batches for row in by_sequence(batch, key)]
                wanted = by_sequence(expected[step], key)
                assert len(found) == len(wanted) == 8
                for one, other in zip(found, wanted, strict=True):
                    torch.testing.assert_close(one, other, atol=TOLERANCE, rtol=TOLERANCE)
        assert any(first != second for first, second in steps), "no decoding of different lengths"


def test_two_processes_under_fsdp2_sample_what_one_process_samples(folder):
    two_processes(folder, ["lora"], 1)
    compare(folder, ["lora"], 1)
    start, trained = (load_policy(folder / name)[0] for name in ("sft", "lora-final"))
    changed = [
        key
        for key, weight in trained.state_dict().items()
        if not torch.equal(weight, start.state_dict()[key])
    ]
    assert any("q_proj" in key for key in changed)  # the adapters are merged into the folder


@pytest.mark.slow  # with all weights trained as well
def test_five_rollouts_under_fsdp2_stay_those_of_one_process(folder):
    two_processes(folder, list(RUNS), 5)
    compare(folder, list(RUNS), 5)


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


def test_checkpoints_of_adapters_under_fsdp2_are_refused_before_the_first_step(tiny_policy):
    check_adapters_can_be_saved(tiny_policy, "steps")
    adapted = get_peft_model(tiny_policy, LoraConfig(r=2, target_modules=["q_proj"]))
    check_adapters_can_be_saved(adapted, "no")
    with pytest.raises(ValueError, match="give --save_every 0"):
        check_adapters_can_be_saved(adapted, "steps")


@pytest.mark.parametrize(
    ("max_tokens", "sizes"),
    # Sequences of 3, 3, 4, 6 and 9 tokens, three at most together: 3 * 4 = 12, 2 * 9 = 18.
    [(None, [3, 2]), (100, [3, 2]), (12, [3, 1, 1]), (8, [2, 1, 1, 1]), (1, [1, 1, 1, 1, 1])],
)
def test_a_rollout_is_scored_in_chunks_that_bound_its_tokens(max_tokens, sizes):
    lengths = [9, 3, 4, 3, 6]
    completions = [[7] * (length - 1) for length in lengths]
    samples = rollout_of_ids([[5]] * 5, completions, pad_id=0, end_ids=[7])
    seen = []

    def score(prompt_ids, prompt_mask, completion_ids, completion_mask) -> Scores:
        seen.append(len(completion_ids))
        return Scores(completion_mask.float(), completion_mask * 2.0, None)

    scores = score_rollout(score, samples, 3, max_tokens)
    assert seen == sizes
    assert torch.equal(scores.logprobs_BC, samples.mask_completion_BC.float())
