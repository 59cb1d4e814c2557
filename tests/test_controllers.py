"""The price of drift, and what a checkpoint keeps of a run beside its weights."""

import json

import pytest

from pipeline.train.controllers import (
    CONTROLLERS_FILE,
    AdaptiveKL,
    FixedKL,
    load_controllers,
    save_controllers,
)


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
def test_the_price_follows_the_drift(kl, expected):
    controller = adaptive()
    controller.update(kl, sequences=100)
    assert controller.coef == pytest.approx(expected)


def test_two_small_rollouts_on_target_by_twice_as_little_come_to_about_one_large_one():
    small, large = adaptive(), adaptive()
    for _ in range(2):
        small.update(0.55, sequences=50)
    large.update(0.55, sequences=100)
    assert small.coef == pytest.approx(large.coef, rel=1e-4)


def test_a_steady_drift_below_the_target_makes_drift_ever_cheaper_and_never_free():
    controller = adaptive()
    prices = []
    for _ in range(50):
        controller.update(0.0, sequences=100)
        prices.append(controller.coef)
    assert prices == sorted(prices, reverse=True) and prices[-1] > 0


def test_a_fixed_price_stays():
    controller = FixedKL(0.1)
    controller.update(50.0, sequences=10_000)
    assert controller.coef == 0.1 and controller.state_dict() == {}


def test_a_checkpoint_keeps_the_price_to_the_last_bit(tmp_path):
    controller, other = adaptive(), adaptive()
    controller.update(0.123456789, sequences=77)
    save_controllers(tmp_path, {"kl": controller})
    load_controllers(tmp_path, {"kl": other})
    assert other.coef == controller.coef != 0.1


def test_a_checkpoint_that_lost_a_state_is_refused(tmp_path):
    save_controllers(tmp_path, {"kl": FixedKL(0.1)})
    (tmp_path / CONTROLLERS_FILE).write_text(json.dumps({}))
    with pytest.raises(ValueError, match=r"has no state of kl in controllers.json; resume with"):
        load_controllers(tmp_path, {"kl": adaptive()})
    load_controllers(tmp_path, {"kl": FixedKL(0.1)})  # which has none
