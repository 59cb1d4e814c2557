"""Scores of completions: by hand, and independent of padding."""

import math

import pytest
import torch
from torch import nn

from pipeline.generation.kv_cache import pad_left
from pipeline.scoring import (
    Scores,
    prepare_completions,
    score_completions,
    score_completions_and_rows,
    score_rows,
    token_scores,
)
from pipeline.scoring.logprobs import supports_packing

PROMPTS = [[100, 101, 102], [103], [104, 105, 106, 107, 108]]
COMPLETIONS = [[110, 111], [112, 113, 114, 115], [116]]


def pad_right(rows: list[list[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    ids, mask = pad_left([row[::-1] for row in rows], pad_id)
    return ids.flip(1), mask.flip(1)


def score(
    model: nn.Module,
    rows: slice = slice(None),
    *,
    pad_id: int = 0,
    more: int = 0,
    temperature: float = 1.0,
) -> Scores:
    """Scores of the rows, with `more` additional padding columns on both sides."""
    prompts, completions = (
        [*pad_left(PROMPTS[rows], pad_id)],
        [*pad_right(COMPLETIONS[rows], pad_id)],
    )
    for pair, side in ((prompts, (more, 0)), (completions, (0, more))):
        pair[0] = nn.functional.pad(pair[0], side, value=pad_id)
        pair[1] = nn.functional.pad(pair[1], side, value=False)
    return score_completions(model, *prompts, *completions, temperature=temperature)


def count_tokens(model: nn.Module) -> tuple[list[int], list[int]]:
    """(positions computed by the first layer, positions with logits), per forward."""
    tokens, logits = [], []
    model.model.layers[0].register_forward_hook(
        lambda layer, args, output: tokens.append(args[0].shape[0] * args[0].shape[1])
    )
    model.register_forward_hook(
        lambda module, args, output: logits.append(output["logits"].shape[:2].numel())
    )
    return tokens, logits


def assert_same_scores(left: Scores, right: Scores) -> None:
    for name in ("logprobs_BC", "entropy_BC", "values_BC"):
        a, b = getattr(left, name), getattr(right, name)
        width = min(a.shape[1], b.shape[1])
        torch.testing.assert_close(a[:, :width], b[:, :width], atol=1e-5, rtol=0, msg=name)
        assert (a[:, width:] == 0).all() and (b[:, width:] == 0).all()


def test_each_token_is_scored_by_the_position_before_it(tiny_policy):
    scores = score(tiny_policy)
    for row, (prompt, completion) in enumerate(zip(PROMPTS, COMPLETIONS, strict=True)):
        output = tiny_policy(torch.tensor([prompt + completion]))
        for c, token in enumerate(completion):
            before = len(prompt) + c - 1
            logprobs = torch.log_softmax(output.logits[0, before], dim=-1)
            torch.testing.assert_close(scores.logprobs_BC[row, c], logprobs[token])
            torch.testing.assert_close(scores.values_BC[row, c], output["state_values"][0, before])


def test_scores_are_zero_on_padding(tiny_policy):
    _, mask_BC = pad_right(COMPLETIONS, 0)
    scores = score(tiny_policy)
    for x_BC in (scores.logprobs_BC, scores.entropy_BC, scores.values_BC):
        assert x_BC.shape == mask_BC.shape
        assert (x_BC[~mask_BC] == 0).all()
        assert (x_BC[mask_BC] != 0).all()


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
def test_scores_of_a_row_do_not_depend_on_longer_rows_of_the_batch(make_model, family):
    model = make_model(family, vocab_size=120)
    together = score(model).logprobs_BC
    for row, completion in enumerate(COMPLETIONS):
        alone = score(model, slice(row, row + 1)).logprobs_BC
        torch.testing.assert_close(together[row, : len(completion)], alone[0], atol=1e-5, rtol=0)


def test_padding_columns_do_not_change_scores(tiny_policy):
    assert_same_scores(score(tiny_policy), score(tiny_policy, more=7))


def test_the_pad_token_does_not_change_scores(tiny_policy):
    assert_same_scores(score(tiny_policy), score(tiny_policy, pad_id=110))


def test_padding_costs_no_computation(tiny_policy):
    assert supports_packing(tiny_policy)  # tried before the counting begins
    tokens, logits = count_tokens(tiny_policy)
    score(tiny_policy, more=50)
    # The rows have 3 + 2, 1 + 4 and 5 + 1 tokens; nothing follows from the last of each.
    assert tokens == [4 + 4 + 5]
    assert logits == [0]  # the LM head is called in chunks, outside the forward


def test_rows_without_completion_tokens_score_zero(tiny_policy):
    prompt, mask = torch.tensor([[5, 6], [7, 8]]), torch.ones(2, 2).bool()
    nothing = torch.zeros(2, 3).bool()
    scores = score_completions(tiny_policy, prompt, mask, torch.full((2, 3), 9), nothing)
    assert scores.logprobs_BC.tolist() == [[0.0] * 3] * 2
    scores.logprobs_BC.sum().backward()  # still a part of the graph, for every process to reduce


def test_gradients_reach_the_trunk_and_the_value_head(tiny_policy):
    scores = score(tiny_policy)
    (scores.logprobs_BC.sum() + scores.values_BC.sum()).backward()
    for name, parameter in tiny_policy.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_without_a_value_head_there_are_no_values(make_model):
    assert score(make_model("llama", vocab_size=120)).values_BC is None


def test_logprob_and_entropy_by_hand():
    # Softmax of ln 2, ln 1, ln 1 is 1/2, 1/4, 1/4.
    logits_BCV = torch.tensor([[[2.0, 1.0, 1.0]]]).log()
    logprobs_BC, entropy_BC = token_scores(logits_BCV, torch.tensor([[0]]))
    assert math.isclose(logprobs_BC.item(), math.log(1 / 2), rel_tol=1e-6)
    # 1/2 ln 2 + 2 * 1/4 ln 4 = 3/2 ln 2
    assert math.isclose(entropy_BC.item(), 1.5 * math.log(2), rel_tol=1e-6)


def test_temperature_divides_the_logits():
    # At temperature 0.5 the odds are squared: 4 to 1 to 1.
    logits_BCV = torch.tensor([[[2.0, 1.0, 1.0]]]).log()
    logprobs_BC, _ = token_scores(logits_BCV, torch.tensor([[0]]), temperature=0.5)
    assert math.isclose(logprobs_BC.item(), math.log(4 / 6), rel_tol=1e-6)


def test_the_temperature_reaches_the_scores(tiny_policy):
    hot, cold = score(tiny_policy, temperature=5.0), score(tiny_policy, temperature=0.2)
    _, mask_BC = pad_right(COMPLETIONS, 0)
    assert (hot.entropy_BC[mask_BC] > cold.entropy_BC[mask_BC]).all()
    torch.testing.assert_close(hot.values_BC, cold.values_BC)


def test_entropy_is_zero_for_certainty_and_the_log_of_the_vocabulary_for_none():
    certain = torch.tensor([[[100.0, 0.0, 0.0, 0.0]]])
    _, entropy_BC = token_scores(certain, torch.tensor([[0]]))
    assert entropy_BC.item() < 1e-30
    _, entropy_BC = token_scores(0 * certain, torch.tensor([[0]]))
    assert math.isclose(entropy_BC.item(), math.log(4), rel_tol=1e-6)


@pytest.mark.parametrize("packed", [True, False])
def test_rows_are_scored_where_the_mask_is_true(tiny_policy, packed):
    if not packed:
        tiny_policy.set_attn_implementation("eager")
    assert supports_packing(tiny_policy) == packed
    ids_BT = torch.tensor([[5, 6, 7, 8, 9], [10, 11, 12, 0, 0]])
    mask_BT = torch.tensor([[1, 0, 1, 0, 1], [0, 1, 1, 0, 0]]).bool()
    found_BT = score_rows(tiny_policy, ids_BT, mask_BT)
    logprobs_BTV = tiny_policy(ids_BT).logits.log_softmax(dim=-1)
    for row, column in [(0, 2), (0, 4), (1, 1), (1, 2)]:
        expected = logprobs_BTV[row, column - 1, ids_BT[row, column]]
        torch.testing.assert_close(found_BT[row, column], expected)
        found_BT[row, column] = 0.0
    assert (found_BT == 0).all()  # the first token too, though its mask is True


@pytest.mark.parametrize("packed", [True, False])
def test_joint_scores_of_completions_and_rows_equal_separate_ones(tiny_policy, packed):
    if not packed:
        tiny_policy.set_attn_implementation("eager")
    prompt_ids_BP, mask_BP = pad_left(PROMPTS, 0)
    ids_BC, mask_BC = pad_right(COMPLETIONS, 0)
    # The first row begins with a question that has a completion; the second is the longest of all.
    rows = [[*PROMPTS[0], 9, 8], list(range(20, 32))]
    ids_RT, mask_RT = pad_right(rows, 0)
    mask_RT[:, : len(PROMPTS[0])] = False
    completions = (prompt_ids_BP, mask_BP, ids_BC, mask_BC)
    scores, logprobs_RT = score_completions_and_rows(
        tiny_policy,
        prepare_completions(tiny_policy, *completions),
        ids_RT,
        mask_RT,
        temperature=0.7,
    )
    apart = score_completions(tiny_policy, *completions, temperature=0.7)
    for name in ("logprobs_BC", "entropy_BC", "values_BC"):
        torch.testing.assert_close(getattr(scores, name), getattr(apart, name), msg=name)
    apart_RT = score_rows(tiny_policy, ids_RT, mask_RT)
    torch.testing.assert_close(logprobs_RT, apart_RT)
    together, separate = (
        torch.autograd.grad(
            each.logprobs_BC.sum() + 0.3 * each.entropy_BC.sum() + each.values_BC.square().sum()
            - rows_RT.sum(),
            list(tiny_policy.parameters()),
        )
        for each, rows_RT in ((scores, logprobs_RT), (apart, apart_RT))
    )  # fmt: skip
    torch.testing.assert_close(together, separate, atol=1e-5, rtol=1e-4)


def test_completions_and_rows_share_one_pass_through_the_trunk(tiny_policy):
    assert supports_packing(tiny_policy)  # tried before the counting begins
    tokens, _ = count_tokens(tiny_policy)
    prompt_ids_BP, mask_BP = pad_left(PROMPTS, 0)
    ids_BC, mask_BC = pad_right(COMPLETIONS, 0)
    ids_RT, mask_RT = pad_right([[*PROMPTS[0], 9, 8]], 0)
    mask_RT[:, : len(PROMPTS[0])] = False
    completions = prepare_completions(tiny_policy, prompt_ids_BP, mask_BP, ids_BC, mask_BC)
    score_completions_and_rows(tiny_policy, completions, ids_RT, mask_RT)
    # The row adds the end of its question, which is predicted from, and 9; 8 predicts nothing.
    assert tokens == [4 + 4 + 5 + 2]
