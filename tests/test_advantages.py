"""KL penalty, rewards, GAE and standardization against sums done by hand, and their identities."""

import pytest
import torch

from pipeline.ppo.advantages import (
    estimate_advantages,
    gae,
    lambda_with_steps,
    masked_moments,
    masked_sums,
    place_rewards,
    rloo_baseline,
    standardize,
    standardize_groups,
)
from pipeline.ppo.kl import kl_penalty

# Two completions: the first fills all three tokens, the second stops after two.
REWARDS_BC = torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
VALUES_BC = torch.tensor([[0.5, 0.5, 0.5], [0.2, 0.4, 9.9]])  # 9.9 sits on padding
MASK_BC = torch.tensor([[True, True, True], [True, True, False]])


def test_gae_matches_the_sum_done_by_hand():
    advantages_BC, returns_BC = gae(REWARDS_BC, VALUES_BC, MASK_BC, gamma=1.0, lam=0.5)
    # delta = [0.0, 0.0, 0.5] and [0.2, 0.6]; then A_t = delta_t + 0.5 * A_{t+1}
    torch.testing.assert_close(advantages_BC, torch.tensor([[0.125, 0.25, 0.5], [0.5, 0.6, 0.0]]))
    torch.testing.assert_close(returns_BC, torch.tensor([[0.625, 0.75, 1.0], [0.7, 1.0, 0.0]]))


def test_gae_discounts_both_the_next_value_and_the_next_advantage():
    advantages_BC, _ = gae(REWARDS_BC, VALUES_BC, MASK_BC, gamma=0.5, lam=0.5)
    # delta = [-0.25, -0.25, 0.5] and [0.0, 0.6]; then A_t = delta_t + 0.25 * A_{t+1}
    expected_BC = torch.tensor([[-0.28125, -0.125, 0.5], [0.15, 0.6, 0.0]])
    torch.testing.assert_close(advantages_BC, expected_BC)


def test_lambda_zero_leaves_the_error_of_one_step():
    advantages_BC, _ = gae(REWARDS_BC, VALUES_BC, MASK_BC, gamma=1.0, lam=0.0)
    torch.testing.assert_close(advantages_BC, torch.tensor([[0.0, 0.0, 0.5], [0.2, 0.6, 0.0]]))


def test_lambda_one_returns_the_discounted_outcome():
    _, returns_BC = gae(REWARDS_BC, VALUES_BC, MASK_BC, gamma=0.9, lam=1.0)
    torch.testing.assert_close(returns_BC, torch.tensor([[0.81, 0.9, 1.0], [0.9, 1.0, 0.0]]))


def test_a_perfect_value_head_leaves_no_advantage():
    advantages_BC, returns_BC = gae(REWARDS_BC, MASK_BC.float(), MASK_BC, gamma=1.0, lam=0.95)
    torch.testing.assert_close(advantages_BC, torch.zeros(2, 3))
    torch.testing.assert_close(returns_BC, MASK_BC.float())


@pytest.mark.parametrize("lam", [0.0, 0.5, 0.95, 1.0])
def test_values_on_padding_change_nothing(lam):
    other_values_BC = torch.where(MASK_BC, VALUES_BC, -7.0)
    torch.testing.assert_close(
        gae(REWARDS_BC, VALUES_BC, MASK_BC, gamma=0.9, lam=lam),
        gae(REWARDS_BC, other_values_BC, MASK_BC, gamma=0.9, lam=lam),
    )


def test_more_padding_changes_nothing():
    wide = [torch.nn.functional.pad(x, (0, 2)) for x in (REWARDS_BC, VALUES_BC, MASK_BC)]
    short = gae(REWARDS_BC, VALUES_BC, MASK_BC, gamma=0.9, lam=0.8)
    for short_BC, wide_BC in zip(short, gae(*wide, gamma=0.9, lam=0.8), strict=True):
        torch.testing.assert_close(wide_BC, torch.nn.functional.pad(short_BC, (0, 2)))


def test_k1_is_the_difference_of_log_probabilities_under_the_mask():
    logprobs_BC = torch.tensor([[-1.0, -2.0, -3.0], [-0.5, -0.5, -9.0]])
    ref_logprobs_BC = torch.tensor([[-1.5, -1.0, -3.0], [-0.5, -1.5, -1.0]])
    expected_BC = torch.tensor([[0.5, -1.0, 0.0], [0.0, 1.0, 0.0]])  # -8 on padding is dropped
    torch.testing.assert_close(kl_penalty(logprobs_BC, ref_logprobs_BC, MASK_BC), expected_BC)


def test_the_mean_of_k1_over_samples_is_the_kl_divergence():
    policy, reference = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.25, 0.25, 0.5])
    # Every token as often as the policy samples it: twice the first, once the others.
    tokens = torch.tensor([[0, 0, 1, 2]])
    penalty = kl_penalty(policy.log()[tokens], reference.log()[tokens], torch.ones(1, 4).bool())
    # 0.5 ln 2 + 0.25 ln 1 + 0.25 ln 0.5 = 0.25 ln 2
    torch.testing.assert_close(penalty.mean(), 0.25 * torch.tensor(2.0).log())


EOS = 9


@pytest.mark.parametrize("pad", [0, EOS], ids=["pad is not EOS", "pad is EOS"])
def test_the_outcome_lands_on_the_end_token_and_never_on_padding(pad):
    ids_BC = torch.tensor([[5, 6, EOS, pad, pad], [EOS, pad, pad, pad, pad], [5, 6, 7, 8, EOS]])
    lengths_B = torch.tensor([3, 1, 5])  # what was sampled, the first EOS included
    mask_BC = torch.arange(5) < lengths_B.unsqueeze(1)
    rewards_BC = place_rewards(torch.tensor([1.0, 2.0, 3.0]), mask_BC)
    assert rewards_BC.nonzero().tolist() == [[0, 2], [1, 0], [2, 4]]
    assert rewards_BC[rewards_BC != 0].tolist() == [1.0, 2.0, 3.0]
    assert ids_BC[rewards_BC != 0].tolist() == [EOS, EOS, EOS]


def test_a_truncated_completion_has_its_reward_on_the_last_token_of_its_budget():
    rewards_BC = place_rewards(torch.tensor([1.0, 1.0]), MASK_BC)
    assert rewards_BC.tolist() == [[0.0, 0.0, 1.0], [0.0, 1.0, 0.0]]


def test_step_rewards_land_on_their_tokens_and_add_up():
    steps = [[(0, 0.25), (2, 0.5)], [(0, 0.125), (0, 0.125)]]
    rewards_BC = place_rewards(torch.tensor([1.0, -1.0]), MASK_BC, steps)
    # The third token of the first completion carries 0.5 for its step and 1.0 for the outcome.
    assert rewards_BC.tolist() == [[0.25, 0.0, 1.5], [0.25, -1.0, 0.0]]


def test_a_completion_without_a_token_is_refused():
    mask_BC = torch.tensor([[True, False], [False, False]])
    with pytest.raises(ValueError, match="completion 1 has no sampled token"):
        place_rewards(torch.ones(2), mask_BC)


def test_the_rloo_baseline_leaves_out_the_completion_itself():
    # Two questions, V = 0.5 and 0; three completions each.
    totals_B = torch.tensor([1.0, 1.0, 0.0, 3.0, 0.0, 0.0])
    values_B = torch.tensor([0.5, 0.5, 0.5, 0.0, 0.0, 0.0])
    # R - V is 0.5, 0.5, -0.5 and 3, 0, 0; each takes the mean of the two others.
    expected_B = torch.tensor([0.0, 0.0, 0.5, 0.0, 1.5, 1.5])
    torch.testing.assert_close(rloo_baseline(totals_B, values_B, 3), expected_B)
    changed_B = rloo_baseline(totals_B + torch.tensor([9.0, 0, 0, 0, 0, 0]), values_B, 3)
    assert changed_B[0] == expected_B[0]


def advantages_of(outcomes: list[float], counted: list[bool], group: int) -> torch.Tensor:
    """By the RLOO baseline, of completions of two tokens with V = 0.25."""
    mask_BC = torch.tensor(counted).unsqueeze(1).expand(-1, 2)
    rewards_BC = torch.tensor([[0.0, outcome] for outcome in outcomes]) * mask_BC
    values_BC = torch.full(mask_BC.shape, 0.25)
    return estimate_advantages(
        rewards_BC, values_BC, mask_BC, gamma=1.0, lam=1.0, rloo_group=group
    )[0]


@pytest.mark.parametrize("outcomes", [[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
def test_completions_left_out_have_no_part_in_the_rloo_baseline(outcomes):
    alone = advantages_of(outcomes, [True, True], group=2)
    among = advantages_of([*outcomes, 1.0, 0.0], [True, True, False, False], group=4)
    torch.testing.assert_close(among, torch.cat([alone, torch.zeros(2, 2)]))
    torch.testing.assert_close(alone[:, 0], torch.tensor(outcomes) - torch.tensor(outcomes).flip(0))


def test_without_another_completion_the_rloo_baseline_is_zero():
    one = advantages_of([1.0, 1.0, 0.0, 0.0], [True, False, False, False], group=4)
    torch.testing.assert_close(one, torch.tensor([[0.75, 0.75]] + [[0.0, 0.0]] * 3))
    assert advantages_of([1.0, 1.0], [False, False], group=2).tolist() == [[0.0, 0.0]] * 2


@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
@pytest.mark.parametrize("lam", [0.0, 0.95, 1.0])
def test_what_is_no_number_on_padding_reaches_nothing(odd, lam):
    values_BC, rewards_BC = VALUES_BC.clone(), REWARDS_BC.clone()
    values_BC[~MASK_BC] = rewards_BC[~MASK_BC] = odd
    found = gae(rewards_BC, values_BC, MASK_BC, gamma=0.9, lam=lam)
    torch.testing.assert_close(found, gae(REWARDS_BC, VALUES_BC, MASK_BC, gamma=0.9, lam=lam))
    torch.testing.assert_close(standardize(values_BC, MASK_BC), standardize(VALUES_BC, MASK_BC))
    assert not found[0][~MASK_BC].any() and not found[1][~MASK_BC].any()


def test_standardizing_matches_the_sum_done_by_hand():
    x_BC = torch.tensor([[1.0, 3.0, 5.0], [3.0, 3.0, 100.0]])
    # The five that count have mean 3 and variance (4 + 0 + 4 + 0 + 0) / 5 = 1.6
    expected_BC = torch.tensor([[-2.0, 0.0, 2.0], [0.0, 0.0, 0.0]]) / 1.6**0.5
    torch.testing.assert_close(standardize(x_BC, MASK_BC), expected_BC)


def test_equal_advantages_standardize_to_zero():
    x_BC = torch.full((2, 3), 0.7)
    torch.testing.assert_close(standardize(x_BC, MASK_BC), torch.zeros(2, 3), atol=1e-3, rtol=0)


def test_two_processes_that_add_their_sums_standardize_like_one():
    generator = torch.Generator().manual_seed(0)
    x_BC = 5.0 + torch.randn(6, 4, generator=generator)
    mask_BC = torch.rand(6, 4, generator=generator) < 0.7
    halves = [(x_BC[:2], mask_BC[:2]), (x_BC[2:], mask_BC[2:])]  # of unequal size
    moments = masked_moments(sum(masked_sums(*half) for half in halves))
    parts = [standardize(*half, moments) for half in halves]
    torch.testing.assert_close(torch.cat(parts), standardize(x_BC, mask_BC))


def test_moments_of_nothing_are_zero():
    assert masked_moments(masked_sums(torch.ones(2, 3), torch.zeros(2, 3).bool())) == (0.0, 0.0)


# ---- credit of single steps ----

# One completion of five tokens: steps end at tokens 1 and 3 with rewards 0 and -1, and it is wrong.
STEPS = [[(1, 0.0), (3, -1.0)]]
STEP_ENDS = [[1, 3]]
FIVE_BC = torch.ones(1, 5, dtype=torch.bool)


def estimated(values_BC: torch.Tensor, **options: float) -> torch.Tensor:
    rewards_BC = place_rewards(torch.zeros(1), FIVE_BC, STEPS)
    given = {"gamma": 1.0, "lam": 1.0, "step_ends": STEP_ENDS, **options}
    return estimate_advantages(rewards_BC, values_BC, FIVE_BC, **given)


def test_the_reward_of_a_step_reaches_every_earlier_token_by_default():
    advantages_BC, _ = estimated(torch.zeros(1, 5))
    assert advantages_BC.tolist() == [[-1.0, -1.0, -1.0, -1.0, 0.0]]


def test_with_step_lam_0_a_false_step_is_credited_to_its_own_tokens_alone():
    advantages_BC, returns_BC = estimated(torch.zeros(1, 5), step_lam=0.0)
    assert advantages_BC.tolist() == [[0.0, 0.0, -1.0, -1.0, 0.0]]
    # The value head still learns the whole return.
    assert returns_BC.tolist() == [[-1.0, -1.0, -1.0, -1.0, 0.0]]


def test_with_step_lam_0_a_step_is_worth_the_value_after_it_less_the_value_before_each_token():
    values_BC = torch.tensor([[0.5, 0.4, 0.3, 0.2, 0.1]])
    advantages_BC, _ = estimated(values_BC, step_lam=0.0)
    # V after the first step is 0.3, after the second -1 + 0.1, after the end 0.
    expected_BC = torch.tensor([[0.3 - 0.5, 0.3 - 0.4, -0.9 - 0.3, -0.9 - 0.2, 0.0 - 0.1]])
    torch.testing.assert_close(advantages_BC, expected_BC)


def test_step_lam_weighs_what_comes_after_the_step():
    advantages_BC, _ = estimated(torch.zeros(1, 5), step_lam=0.5)
    assert advantages_BC.tolist() == [[-0.5, -0.5, -1.0, -1.0, 0.0]]


def test_a_step_lam_of_lam_changes_nothing():
    values_BC = torch.tensor([[0.5, 0.4, 0.3, 0.2, 0.1]])
    plain, same = (estimated(values_BC, lam=0.5, **own)[0] for own in ({}, {"step_lam": 0.5}))
    assert torch.equal(plain, same)


def test_step_lam_replaces_the_lambda_of_a_completion_at_its_steps():
    mask_BC = torch.ones(2, 3, dtype=torch.bool)
    found_BC = lambda_with_steps(mask_BC, torch.tensor([0.5, 0.25]), [[1], []], 0.0)
    assert found_BC.tolist() == [[0.5, 0.0, 0.5], [0.25, 0.25, 0.25]]


# ---- normalization ----


def test_each_question_is_standardized_by_its_own_completions_with_equal_weights():
    # Two questions of two completions: tokens 1, 3 and 5, and 2 and 2. The mean of the first is
    # that of 2 and 5, the variance that of (2.5^2 + 0.5^2) / 2 and 1.5^2.
    x_BC = torch.tensor([[1.0, 3.0], [5.0, 99.0], [2.0, 99.0], [2.0, 99.0]])
    mask_BC = torch.tensor([[True, True], [True, False], [True, False], [True, False]])
    std = 2.75**0.5
    expected_BC = torch.tensor([[-2.5 / std, -0.5 / std], [1.5 / std, 0.0], [0.0, 0.0], [0.0, 0.0]])
    torch.testing.assert_close(standardize_groups(x_BC, mask_BC, 2), expected_BC)


def test_a_question_without_tokens_has_advantages_of_0():
    x_BC, mask_BC = torch.full((2, 3), float("nan")), torch.zeros(2, 3, dtype=torch.bool)
    assert not standardize_groups(x_BC, mask_BC, 2).any()
