"""Estimators of the KL: values by hand, and their expected gradients."""

import math

import pytest
import torch

from pipeline.ppo.kl import ESTIMATORS, k3, kl_penalty

# One token of probability 1/2 under the policy and 1/4 under the reference, then padding.
LOGPROBS = torch.tensor([[math.log(0.5), -3.0]])
REFERENCE = torch.tensor([[math.log(0.25), 90.0]])
MASK = torch.tensor([[True, False]])


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        ("k1", math.log(2)),
        ("k2", math.log(2) ** 2 / 2),
        ("k3", 0.5 - 1 + math.log(2)),
    ],
)
def test_each_estimator_has_the_value_by_hand_and_zero_on_padding(estimator, expected):
    penalty = kl_penalty(LOGPROBS, REFERENCE, MASK, estimator)
    torch.testing.assert_close(penalty, torch.tensor([[expected, 0.0]]))


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
@pytest.mark.parametrize("odd", [math.nan, math.inf])
def test_what_is_no_number_on_padding_reaches_neither_penalty_nor_gradient(estimator, odd):
    logprobs = torch.tensor([[math.log(0.5), odd]], requires_grad=True)
    penalty = kl_penalty(logprobs, REFERENCE, MASK, estimator)
    expected = kl_penalty(LOGPROBS, REFERENCE, MASK, estimator)
    torch.testing.assert_close(penalty, expected)
    penalty.sum().backward()
    assert logprobs.grad.isfinite().all() and logprobs.grad[0, 1] == 0


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_k2_and_k3_are_positive_for_both_signs_of_the_log_ratio(estimator):
    up, down = torch.tensor([[0.3]]), torch.tensor([[-0.3]])
    mask = torch.ones(1, 1, dtype=torch.bool)
    assert kl_penalty(up, torch.zeros(1, 1), mask, estimator) > 0
    assert kl_penalty(down, torch.zeros(1, 1), mask, estimator) > 0


LOGITS = torch.tensor([0.2, -0.5, 1.0])
OTHER = torch.tensor([0.6, 0.3, 0.1])


def mean_over_samples(estimator: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(expected value, expected gradient), all three tokens weighed by how often they come."""
    logits = LOGITS.clone().requires_grad_()
    logprobs = logits.log_softmax(0)
    mask = torch.ones(1, 3, dtype=torch.bool)
    penalty = kl_penalty(logprobs.unsqueeze(0), OTHER.log().unsqueeze(0), mask, estimator)
    mean = (logprobs.detach().exp() * penalty).sum()
    mean.backward()
    return mean.detach(), logits.grad


def divergence_gradient(forward: bool) -> torch.Tensor:
    logits = LOGITS.clone().requires_grad_()
    logprobs, other = logits.log_softmax(0), OTHER.log()
    if forward:
        (logprobs.exp() * (logprobs - other)).sum().backward()
    else:
        (other.exp() * (other - logprobs)).sum().backward()
    return logits.grad


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_the_mean_of_the_unbiased_estimators_is_the_kl(estimator):
    logprobs = LOGITS.log_softmax(0)
    divergence = (logprobs.exp() * (logprobs - OTHER.log())).sum()
    torch.testing.assert_close(mean_over_samples(estimator)[0], divergence)


def test_k1_as_a_loss_has_a_mean_gradient_of_zero():
    torch.testing.assert_close(mean_over_samples("k1")[1], torch.zeros(3), atol=1e-6, rtol=0)


def test_k2_as_a_loss_has_the_gradient_of_the_kl_from_the_reference():
    torch.testing.assert_close(mean_over_samples("k2")[1], divergence_gradient(forward=True))


def test_k3_as_a_loss_has_the_gradient_of_the_kl_of_the_reference_from_the_policy():
    torch.testing.assert_close(mean_over_samples("k3")[1], divergence_gradient(forward=False))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_values_on_padding_change_nothing(estimator):
    other = torch.tensor([[math.log(0.25), -700.0]])
    torch.testing.assert_close(
        kl_penalty(LOGPROBS, REFERENCE, MASK, estimator),
        kl_penalty(LOGPROBS, other, MASK, estimator),
    )


def test_k3_is_never_negative_and_zero_for_equal_policies():
    old_BC, new_BC = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    mask_BC = torch.ones(5, 7, dtype=torch.bool)
    assert (k3(old_BC, new_BC, mask_BC) >= 0).all()
    assert (k3(old_BC, old_BC, mask_BC) == 0).all()


def test_mean_k3_over_tokens_of_the_old_policy_is_its_kl_divergence_from_the_new_one():
    old, new = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.25, 0.25, 0.5])
    tokens = torch.tensor([0, 0, 1, 2])  # as often as the old policy samples them
    drift = k3(old.log()[tokens], new.log()[tokens], torch.ones(4, dtype=torch.bool))
    # By token: (0.5 - 1) - ln 0.5, the same, 0, and (2 - 1) - ln 2.
    half = math.log(2) - 0.5
    torch.testing.assert_close(drift, torch.tensor([half, half, 0.0, 1 - math.log(2)]))
    torch.testing.assert_close(drift.mean(), (old * (old / new).log()).sum())
