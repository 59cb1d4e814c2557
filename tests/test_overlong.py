"""Lambda and penalty by length."""

import torch

from pipeline.ppo.advantages import gae, length_adaptive_lambda, overlong

MASK_BC = torch.arange(100) < torch.tensor([[100], [40], [20], [3]])


def test_lambda_grows_with_the_length_and_never_falls_below_zero():
    # 1 - 1 / (0.05 * 100) = 0.8; 40: 0.5; 20: 0; 3: would be -5.7
    expected = torch.tensor([0.8, 0.5, 0.0, 0.0])
    torch.testing.assert_close(length_adaptive_lambda(MASK_BC, 0.05), expected)


def test_the_estimate_covers_the_same_share_of_every_length():
    lam_B = length_adaptive_lambda(MASK_BC[:2], 0.05)
    reach_B = 1 / (1 - lam_B)  # 1 + lam + lam^2 + ...
    torch.testing.assert_close(reach_B / torch.tensor([100.0, 40.0]), torch.full((2,), 0.05))


def test_a_lambda_per_row_gives_the_advantages_of_each_row_alone():
    generator = torch.Generator().manual_seed(0)
    rewards_BC, values_BC = torch.randn(2, 2, 5, generator=generator)
    mask_BC = torch.arange(5) < torch.tensor([[5], [3]])
    rewards_BC, values_BC = rewards_BC * mask_BC, values_BC * mask_BC
    both, _ = gae(rewards_BC, values_BC, mask_BC, gamma=1.0, lam=torch.tensor([0.9, 0.2]))
    for row, lam in enumerate((0.9, 0.2)):
        part = slice(row, row + 1)
        alone, _ = gae(rewards_BC[part], values_BC[part], mask_BC[part], gamma=1.0, lam=lam)
        torch.testing.assert_close(both[part], alone)


def test_the_soft_penalty_grows_over_the_last_tokens_of_the_budget():
    lengths_B = torch.tensor([4, 16, 17, 18, 20])
    cut_B = torch.tensor([False, False, False, False, True])
    over_B = overlong(lengths_B, cut_B, budget=20, buffer=4)
    assert over_B.tolist() == [0.0, 0.0, 0.25, 0.5, 1.0]


def test_without_a_buffer_only_truncated_completions_have_the_penalty():
    lengths_B, cut_B = torch.tensor([19, 20, 20]), torch.tensor([False, False, True])
    assert overlong(lengths_B, cut_B, budget=20, buffer=0).tolist() == [0.0, 0.0, 1.0]
