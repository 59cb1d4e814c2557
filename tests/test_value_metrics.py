"""Metrics of a value estimate: sums by hand and what must not matter."""

import math

import numpy as np
import pytest

from pipeline.stats.value_metrics import explained_variance, value_metrics


def test_a_value_that_only_knows_the_question_is_calibrated_and_ranks_nothing():
    """Four questions, easy ones valued high: good over all samples, chance within a question."""
    question = np.arange(4).repeat(4)
    right = [1, 1, 1, 0] * 2 + [1, 0, 0, 0] * 2
    found = value_metrics([0.75] * 8 + [0.25] * 8, right, question)
    # 6 of 8 right ones are at 0.75 and 2 of 8 wrong ones: 0.75 * 0.75, and 0.375 of ties.
    assert found["auroc"] == 0.75 * 0.75 + 0.5 * 2 * 0.75 * 0.25
    assert (found["within_question_auroc_mean"], found["questions_compared"]) == (0.5, 4)
    assert found["best_of_n"] == found["right"] == 0.5
    assert found["calibration_error"] == 0.0
    assert found["explained_variance"] == pytest.approx(0.25)
    assert found["brier"] == pytest.approx(0.1875)  # 3/4 * 0.25^2 + 1/4 * 0.75^2


def test_the_order_of_the_samples_does_not_matter():
    rng = np.random.default_rng(0)
    values, question = rng.random(60), rng.integers(0, 9, size=60)
    right = (rng.random(60) < values).astype(float)
    order = rng.permutation(60)
    shuffled = value_metrics(values[order], right[order], question[order])
    assert shuffled == pytest.approx(value_metrics(values, right, question), nan_ok=True)


def test_values_outside_of_zero_and_one_are_clipped_for_calibration_only():
    found = value_metrics([2.0, -1.0], [1, 0], [0, 0])
    assert found["calibration_error"] == 0.0
    # R - V is -1 and 1: mean square 1, variance 1; Var[R] is 1/4
    assert found["brier"] == 1.0 and found["explained_variance"] == 1 - 4


def test_explained_variance_is_one_for_a_perfect_and_zero_for_a_constant_value():
    returns = np.array([0.0, 1.0, 1.0, 2.0])
    assert explained_variance(returns, returns) == 1.0
    assert explained_variance(np.full(4, 3.0), returns) == 0.0


def test_explained_variance_by_hand():
    values, returns = np.array([0.0, 0.0, 2.0, 2.0]), [0.0, 0.0, 4.0, 4.0]
    # Var[R - V] = Var[0, 0, 2, 2] = 1 and Var[R] = 4
    assert explained_variance(values, returns) == 0.75
    assert explained_variance(-values, returns) == 1 - 9 / 4  # worse than a constant


@pytest.mark.parametrize("returns", [[], [1.0, 1.0], [0.1] * 3])
def test_explained_variance_of_constant_returns_or_of_none_is_not_a_number(returns):
    assert math.isnan(explained_variance(np.arange(float(len(returns))), returns))
