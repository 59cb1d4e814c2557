"""Copies of a sharded model that rollouts sample from, and scoring in chunks."""

import pytest
import torch

from pipeline.model.unsharded import gathered, meta_copy, named_weights
from pipeline.ppo.rollout import rollout_of_ids, score_rollout
from pipeline.scoring import Scores


def test_a_copy_on_the_meta_device_takes_the_weights_and_gives_them_back(tiny_policy):
    ids_BT = torch.tensor([[3, 1, 2]])
    skeleton = meta_copy(tiny_policy)
    assert {p.device.type for p in skeleton.parameters()} == {"meta"}
    with gathered(named_weights(tiny_policy), skeleton) as whole, torch.no_grad():
        output = whole(input_ids=ids_BT)
    expected = tiny_policy(input_ids=ids_BT)
    assert torch.equal(output["logits"], expected["logits"])
    assert torch.equal(output["state_values"], expected["state_values"])
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
