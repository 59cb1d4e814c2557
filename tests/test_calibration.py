"""Calibration of confidences: sums by hand, and simulated confidences of known error."""

import numpy as np
import pytest

from pipeline.stats.calibration import calibration


def test_the_error_is_the_mean_gap_weighted_by_the_size_of_the_bins():
    # bin [0.5, 1]: claims 0.8, 1 of 2 right, gap 0.3; bin [0, 0.5): claims 0.2, 0 of 2, gap 0.2
    found = calibration([0.9, 0.7, 0.3, 0.1], [True, False, False, False], bins=2)
    assert found.ece == pytest.approx(0.25)
    # (0.1^2 + 0.7^2 + 0.3^2 + 0.1^2) / 4
    assert found.brier == pytest.approx(0.15)
    assert [b.n for b in found.bins] == [2, 2]


def test_calibrated_confidences_have_a_small_error_and_overconfident_ones_a_large_one():
    rng = np.random.default_rng(0)
    claimed = rng.random(20_000)
    calibrated = rng.random(20_000) < claimed
    assert calibration(claimed, calibrated).ece < 0.015
    overconfident = rng.random(20_000) < claimed / 2
    # the mean gap of claiming p where p / 2 is true is 1/4
    assert calibration(claimed, overconfident).ece == pytest.approx(0.25, abs=0.01)


def test_confidences_outside_of_zero_and_one_are_clipped():
    right = [True, False, True]
    assert calibration([1.7, -0.2, 0.5], right) == calibration([1.0, 0.0, 0.5], right)


def test_the_auroc_is_of_the_confidences_before_they_are_clipped():
    found = calibration([1.5, 1.1, 0.2], [True, False, False])
    assert found.auroc == 1.0  # clipped to 1.0, 1.0, 0.2 it would be 0.75
    assert found.brier == pytest.approx((1 + 0.04) / 3)


def test_bins_hold_every_answer_once_and_empty_ones_are_left_out():
    found = calibration([-0.5, 0.05, 0.95, 1.0, 2.0], [0, 1, 1, 1, 0])
    assert [b.n for b in found.bins] == [2, 3]
    assert found.bins[0].confidence == pytest.approx(0.025)
    assert found.bins[1].right.mean == pytest.approx(2 / 3)


def test_shares_of_right_continuations_are_calibrated_like_outcomes():
    # One bin: mean confidence 0.5, mean share 0.75.
    assert calibration([0.45, 0.55], [0.5, 1.0], bins=1).ece == pytest.approx(0.25)


def test_auroc_is_none_where_all_answers_are_right():
    assert calibration([0.1, 0.9], [True, True]).auroc is None
    assert calibration([0.1, 0.9], [False, True]).auroc == 1.0


def test_what_cannot_be_calibrated_is_refused():
    with pytest.raises(ValueError, match="no answers"):
        calibration([], [])
    with pytest.raises(ValueError, match="2 confidences for 1 answers"):
        calibration([0.1, 0.2], [True])
    with pytest.raises(ValueError, match="not a number"):
        calibration([float("nan")], [True])
