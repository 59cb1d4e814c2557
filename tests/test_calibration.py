"""Confidences: sums done by hand, brute force over pairs, and what must not matter."""

from itertools import product

import numpy as np
import pytest

from pipeline.stats.calibration import auroc, calibration, within_question_auroc


def test_the_error_is_the_mean_gap_weighed_by_the_size_of_the_bins():
    # bin [0.5, 1]: claims 0.8, 1 of 2 right, gap 0.3; bin [0, 0.5): claims 0.2, 0 of 2, gap 0.2
    found = calibration([0.9, 0.7, 0.3, 0.1], [True, False, False, False], bins=2)
    assert found.ece == pytest.approx(0.25)
    # (0.1^2 + 0.7^2 + 0.3^2 + 0.1^2) / 4
    assert found.brier == pytest.approx(0.15)
    assert [b.n for b in found.bins] == [2, 2]


def test_honest_confidences_have_a_small_error_and_boasting_ones_do_not():
    rng = np.random.default_rng(0)
    claimed = rng.random(20_000)
    honest = rng.random(20_000) < claimed
    assert calibration(claimed, honest).ece < 0.015
    boasting = rng.random(20_000) < claimed / 2
    # the mean gap of claiming p where p / 2 is true is 1/4
    assert calibration(claimed, boasting).ece == pytest.approx(0.25, abs=0.01)


def test_values_outside_of_zero_and_one_count_as_the_nearest_inside():
    right = [True, False, True]
    assert calibration([1.7, -0.2, 0.5], right) == calibration([1.0, 0.0, 0.5], right)


def test_auroc_is_the_share_of_pairs_in_the_right_order():
    rng = np.random.default_rng(1)
    score, correct = rng.integers(0, 6, size=40), rng.random(40) < 0.4
    pairs = list(product(score[correct], score[~correct]))
    share = sum((a > b) + 0.5 * (a == b) for a, b in pairs) / len(pairs)
    assert auroc(score, correct) == pytest.approx(share)


def test_only_the_order_of_scores_matters_to_auroc():
    score, correct = np.array([0.1, 0.4, 0.35, 0.8]), [False, False, True, True]
    assert auroc(score, correct) == auroc(np.exp(5 * score), correct) == 0.75
    assert auroc(-score, correct) == 0.25


def test_knowing_only_the_question_ranks_nothing_within_it():
    score_QG, correct_QG = [[0.9, 0.9, 0.9], [0.1, 0.1, 0.1]], [[1, 1, 0], [0, 0, 1]]
    assert within_question_auroc(score_QG, correct_QG) == 0.5
    flat = [s for row in score_QG for s in row], [c for row in correct_QG for c in row]
    assert auroc(*flat) > 0.5


def test_questions_without_a_pair_say_nothing():
    assert within_question_auroc([[0.1, 0.9]], [[True, True]]) is None
    both = within_question_auroc([[0.1, 0.9], [0.2, 0.8]], [[True, True], [False, True]])
    assert both == 1.0


def test_what_cannot_be_calibrated_is_refused():
    with pytest.raises(ValueError, match="no answers"):
        calibration([], [])
    with pytest.raises(ValueError, match="2 confidences for 1 answers"):
        calibration([0.1, 0.2], [True])
    with pytest.raises(ValueError, match="not a number"):
        calibration([float("nan")], [True])
