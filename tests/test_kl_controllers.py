"""The KL coefficient, and what a checkpoint stores of it."""

import json
import re

import pytest

from pipeline.ppo.kl import AdaptiveKL, FixedKL, make_kl_controller
from pipeline.ppo.options import PPOOptions


def adaptive(coef: float = 0.1) -> AdaptiveKL:
    return AdaptiveKL(coef, target=0.5, horizon=1000)


@pytest.mark.parametrize(
    ("kl", "expected"),
    [
        (0.5, 0.1),  # on target
        (0.55, 0.101),  # error 0.1, 100 of 1000 sequences: 0.1 * (1 + 0.1 * 0.1)
        (0.45, 0.099),
        (50.0, 0.102),  # the error is at most 0.2
        (-3.0, 0.098),  # and at least -0.2
    ],
)
def test_the_coefficient_follows_the_kl(kl, expected):
    controller = adaptive()
    controller.update(kl, sequences=100)
    assert controller.coef == pytest.approx(expected)


def test_two_small_rollouts_change_the_coefficient_about_as_much_as_one_large_one():
    small, large = adaptive(), adaptive()
    for _ in range(2):
        small.update(0.55, sequences=50)
    large.update(0.55, sequences=100)
    assert small.coef == pytest.approx(large.coef, rel=1e-4)


def test_a_kl_below_the_target_lowers_the_coefficient_towards_zero():
    controller = adaptive()
    prices = []
    for _ in range(50):
        controller.update(0.0, sequences=100)
        prices.append(controller.coef)
    assert prices == sorted(prices, reverse=True) and prices[-1] > 0


@pytest.mark.parametrize("kl", [0.0, 0.05, 0.1, 50.0])
@pytest.mark.parametrize("questions", [1, 7, 32, 512])
@pytest.mark.parametrize("horizon", [1, 2, 13, 52, 820, 10_000])
def test_the_coefficient_stays_above_zero_where_the_options_are_accepted(horizon, questions, kl):
    options = PPOOptions(
        kl_controller="adaptive", kl_horizon=horizon, questions_per_rollout=questions
    )
    if options.rollout_size >= 5 * horizon:
        with pytest.raises(ValueError, match=f"kl_horizon={horizon} is too short") as refused:
            options.check_options()
        options.kl_horizon = int(re.findall(r"give kl_horizon=(\d+)", str(refused.value))[0])
        assert options.kl_horizon == options.rollout_size // 5 + 1  # the least that is accepted
    options.check_options()
    controller = make_kl_controller(options)
    for _ in range(5):
        controller.update(kl, options.rollout_size)
        assert controller.coef > 0


def test_a_fixed_coefficient_stays():
    controller = FixedKL(0.1)
    controller.update(50.0, sequences=10_000)
    assert controller.coef == 0.1 and controller.state_dict() == {}


def test_a_state_stores_the_coefficient_exactly():
    controller, other = adaptive(), adaptive()
    controller.update(0.123456789, sequences=77)
    other.load_state_dict(json.loads(json.dumps(controller.state_dict())))
    assert other.coef == controller.coef != 0.1
    assert (
        other.rollout_coef == controller.rollout_coef == 0.1
    )  # the coefficient of the current rollout


def test_the_state_of_a_fixed_coefficient_is_refused_by_an_adaptive_one():
    with pytest.raises(ValueError, match="saved with kl_controller=fixed, and this run is adaptiv"):
        adaptive().load_state_dict(FixedKL(0.1).state_dict())
