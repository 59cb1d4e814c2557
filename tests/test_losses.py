"""PPO's losses against a slow reference in plain loops, and their identities."""

import math

import pytest
import torch

from pipeline.ppo.losses import policy_loss, value_loss


def noise(seed: int, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(5, 7, generator=torch.Generator().manual_seed(seed))


def slow_policy_loss(
    new: float, old: float, advantage: float, low: float, high: float
) -> tuple[float, bool]:
    ratio = math.exp(new - old)
    bounded = min(max(ratio, 1 - low), 1 + high)
    return -min(ratio * advantage, bounded * advantage), bounded * advantage < ratio * advantage


def slow_value_loss(value: float, old: float, target: float, clip: float) -> tuple[float, bool]:
    near = min(max(value, old - clip), old + clip)
    free, held = (value - target) ** 2, (near - target) ** 2
    return 0.5 * max(free, held), held > free


@pytest.mark.parametrize("clip_high", [None, 0.4])
def test_the_policy_loss_equals_the_slow_reference(clip_high):
    new_BC, old_BC, advantages_BC = noise(0, 0.5), noise(1, 0.5), noise(2)
    loss_BC, clipped_BC = policy_loss(new_BC, old_BC, advantages_BC, clip=0.2, clip_high=clip_high)
    rows = zip(*(x.flatten().tolist() for x in (new_BC, old_BC, advantages_BC)), strict=True)
    slow = [slow_policy_loss(*row, 0.2, clip_high or 0.2) for row in rows]
    torch.testing.assert_close(loss_BC.flatten(), torch.tensor([loss for loss, _ in slow]))
    assert clipped_BC.flatten().tolist() == [clipped for _, clipped in slow]
    assert 0 < clipped_BC.sum() < clipped_BC.numel()  # both cases were looked at


def test_the_policy_loss_by_hand():
    old_B = torch.zeros(4)
    new_B = torch.tensor([2.0, 2.0, 0.5, 0.5]).log()
    advantages_B = torch.tensor([1.0, -1.0, 1.0, -1.0])
    loss_B, clipped_B = policy_loss(new_B, old_B, advantages_B, clip=0.2)
    # A good token has risen too far: 1.2; a bad one that rose is pushed back freely: 2.
    # A good token that fell is pulled back freely: 0.5; a bad one has fallen too far: 0.8.
    torch.testing.assert_close(loss_B, torch.tensor([-1.2, 2.0, -0.5, 0.8]))
    assert clipped_B.tolist() == [True, False, False, True]


def test_the_gradient_is_zero_where_the_ratio_is_clipped_and_nowhere_else():
    new_B = torch.tensor([2.0, 2.0, 0.5, 0.5]).log().requires_grad_()
    loss_B, clipped_B = policy_loss(
        new_B, torch.zeros(4), torch.tensor([1.0, -1.0, 1.0, -1.0]), clip=0.2
    )
    loss_B.sum().backward()
    # d(-ratio * A) / d log pi = -ratio * A
    torch.testing.assert_close(new_B.grad, torch.tensor([0.0, 2.0, -0.5, 0.0]))
    assert (new_B.grad == 0).tolist() == clipped_B.tolist()


def test_clip_high_lets_a_ratio_rise_further_and_fall_no_further():
    new_B, ones_B = torch.tensor([1.3, 0.7]).log(), torch.tensor([1.0, -1.0])
    _, tight_B = policy_loss(new_B, torch.zeros(2), ones_B, clip=0.2)
    _, loose_B = policy_loss(new_B, torch.zeros(2), ones_B, clip=0.2, clip_high=0.4)
    assert tight_B.tolist() == [True, True]
    assert loose_B.tolist() == [False, True]


def test_the_first_step_has_the_gradient_of_plain_policy_gradient():
    new_BC = noise(0).requires_grad_()
    loss_BC, clipped_BC = policy_loss(new_BC, new_BC.detach(), noise(1), clip=0.2)
    loss_BC.sum().backward()
    torch.testing.assert_close(new_BC.grad, -noise(1))
    assert not clipped_BC.any()


def test_the_value_loss_equals_the_slow_reference():
    values_BC, old_BC, returns_BC = noise(0), noise(1), noise(2)
    loss_BC, clipped_BC = value_loss(values_BC, old_BC, returns_BC, clip=0.2)
    rows = zip(*(x.flatten().tolist() for x in (values_BC, old_BC, returns_BC)), strict=True)
    slow = [slow_value_loss(*row, 0.2) for row in rows]
    torch.testing.assert_close(loss_BC.flatten(), torch.tensor([loss for loss, _ in slow]))
    assert clipped_BC.flatten().tolist() == [clipped for _, clipped in slow]
    assert 0 < clipped_BC.sum() < clipped_BC.numel()


def test_a_value_that_is_clipped_has_no_gradient():
    values_B = torch.tensor([0.5, -0.5, 0.5]).requires_grad_()
    old_B, returns_B = torch.zeros(3), torch.tensor([1.0, -1.0, -1.0])
    loss_B, clipped_B = value_loss(values_B, old_B, returns_B, clip=0.2)
    loss_B.sum().backward()
    # Held at 0.2 and -0.2: 0.5 * 0.8^2. The third moved away from its return: 0.5 * 1.5^2.
    torch.testing.assert_close(loss_B.detach(), torch.tensor([0.32, 0.32, 1.125]))
    torch.testing.assert_close(values_B.grad, torch.tensor([0.0, 0.0, 1.5]))
    assert clipped_B.tolist() == [True, True, False]


def test_without_a_clip_the_value_loss_is_half_the_squared_error():
    values_BC, returns_BC = noise(0), noise(1)
    loss_BC, clipped_BC = value_loss(values_BC, noise(2), returns_BC, clip=None)
    torch.testing.assert_close(loss_BC, 0.5 * (values_BC - returns_BC) ** 2)
    assert not clipped_BC.any()


def test_the_dual_clip_bounds_the_loss_of_a_token_with_a_negative_advantage():
    # Ratios 10, 2, 10 and 10; the last one's advantage is good, so the ordinary clip holds it.
    ratios_BC = torch.tensor([[10.0, 2.0, 10.0, 10.0]])
    advantages_BC = torch.tensor([[-1.0, -1.0, -0.5, 1.0]])
    loss_BC, clipped_BC = policy_loss(
        ratios_BC.log(), torch.zeros(1, 4), advantages_BC, clip=0.2, dual_clip=3.0
    )
    torch.testing.assert_close(loss_BC, torch.tensor([[3.0, 2.0, 1.5, -1.2]]))
    assert clipped_BC.tolist() == [[True, False, True, True]]


def test_a_token_beyond_the_dual_clip_has_no_gradient():
    logprobs_BC = torch.tensor([[10.0, 2.0]]).log().requires_grad_()
    loss_BC, _ = policy_loss(
        logprobs_BC, torch.zeros(1, 2), torch.full((1, 2), -1.0), clip=0.2, dual_clip=3.0
    )
    loss_BC.sum().backward()
    torch.testing.assert_close(logprobs_BC.grad, torch.tensor([[0.0, 2.0]]))
