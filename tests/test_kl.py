"""Estimators of the KL: values by hand, and their expected gradients."""

import math

import pytest
import torch

from pipeline.ppo.kl import ESTIMATORS, kl_charge

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
    charge = kl_charge(LOGPROBS, REFERENCE, MASK, estimator)
    torch.testing.assert_close(charge, torch.tensor([[expected, 0.0]]))


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_k2_and_k3_are_positive_for_both_signs_of_the_log_ratio(estimator):
    up, down = torch.tensor([[0.3]]), torch.tensor([[-0.3]])
    mask = torch.ones(1, 1, dtype=torch.bool)
    assert kl_charge(up, torch.zeros(1, 1), mask, estimator) > 0
    assert kl_charge(down, torch.zeros(1, 1), mask, estimator) > 0


LOGITS = torch.tensor([0.2, -0.5, 1.0])
OTHER = torch.tensor([0.6, 0.3, 0.1])


def mean_over_samples(estimator: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(expected value, expected gradient), all three tokens weighed by how often they come."""
    logits = LOGITS.clone().requires_grad_()
    logprobs = logits.log_softmax(0)
    mask = torch.ones(1, 3, dtype=torch.bool)
    charge = kl_charge(logprobs.unsqueeze(0), OTHER.log().unsqueeze(0), mask, estimator)
    mean = (logprobs.detach().exp() * charge).sum()
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
        kl_charge(LOGPROBS, REFERENCE, MASK, estimator), kl_charge(LOGPROBS, other, MASK, estimator)
    )
