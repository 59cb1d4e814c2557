"""AUROC over all samples and within a question, best-of-n: counting pairs and sums by hand."""

import math
from itertools import product

import numpy as np
import pytest

from pipeline.stats.ranking import (
    auroc,
    best_of_n_accuracy,
    within_question_auroc_mean,
    within_question_auroc_pooled,
)


def share_of_pairs(scores: np.ndarray, right: np.ndarray) -> float:
    pairs = list(product(scores[right], scores[~right]))
    return sum((a > b) + 0.5 * (a == b) for a, b in pairs) / len(pairs)


@pytest.mark.parametrize("ties", [False, True])
def test_auroc_is_the_share_of_pairs_in_the_right_order(ties):
    rng = np.random.default_rng(1)
    scores = rng.integers(0, 6, size=40) if ties else rng.random(40)
    right = rng.random(40) < 0.4
    assert auroc(scores, right) == pytest.approx(share_of_pairs(scores, right))


def test_auroc_depends_on_the_order_of_the_scores_only():
    # Pairs: 0.4 beats 0.1, ties 0.4, loses to 0.8; 0.9 beats all three: 4.5 of 6.
    scores, right = np.array([0.1, 0.4, 0.4, 0.8, 0.9]), [0, 1, 0, 0, 1]
    assert (
        auroc(scores, right) == 0.75 == auroc(scores**3 - 7, right) == auroc(np.exp(scores), right)
    )
    assert auroc(-scores, right) == 0.25


def test_auroc_of_a_single_class_is_not_a_number():
    assert math.isnan(auroc([0.1, 0.9], [True, True]))
    assert math.isnan(auroc([0.1, 0.9], [False, False]))


def test_a_share_above_one_half_counts_as_right():
    assert auroc([0.9, 0.5, 0.1], [0.75, 0.5, 0.25]) == auroc([0.9, 0.5, 0.1], [1, 0, 0]) == 1.0


def test_a_score_that_only_knows_the_question_ranks_nothing_within_it():
    # 0.9 for every completion of the easy question and 0.1 for every one of the hard question.
    scores, right = [0.9] * 4 + [0.1] * 4, [1, 1, 1, 0, 1, 0, 0, 0]
    question = [0] * 4 + [1] * 4
    assert auroc(scores, right) == 0.75
    assert within_question_auroc_pooled(scores, right, question) == 0.5
    assert within_question_auroc_mean(scores, right, question) == (0.5, 2)


def test_pooling_weighs_questions_by_their_pairs_and_the_mean_does_not():
    # Question 0: 2 x 2 pairs, all in order. Question 1: 1 pair, in the wrong order.
    scores, right, question = [4, 3, 2, 1, 1, 2], [1, 1, 0, 0, 1, 0], [0, 0, 0, 0, 1, 1]
    assert within_question_auroc_pooled(scores, right, question) == 4 / 5
    assert within_question_auroc_mean(scores, right, question) == (1 / 2, 2)


def test_questions_without_a_pair_are_left_out():
    scores, right, question = [0.1, 0.9, 0.2, 0.8], [1, 1, 0, 1], [0, 0, 1, 1]
    assert within_question_auroc_pooled(scores, right, question) == 1.0
    assert within_question_auroc_mean(scores, right, question) == (1.0, 1)


@pytest.mark.parametrize("columns", [([0.1, 0.9], [1, 1], [0, 0]), ([], [], [])])
def test_without_any_pair_both_estimators_are_not_a_number(columns):
    assert math.isnan(within_question_auroc_pooled(*columns))
    mean, questions = within_question_auroc_mean(*columns)
    assert math.isnan(mean) and questions == 0


def test_best_of_n_takes_the_highest_score_of_each_question():
    right, question = np.array([1.0, 0.0, 0.0, 1.0, 1.0]), [0, 0, 1, 1, 2]
    assert best_of_n_accuracy(right, right, question) == 1.0
    assert best_of_n_accuracy(-right, right, question) == pytest.approx(1 / 3)
    assert best_of_n_accuracy(np.zeros(5), right, question) == pytest.approx((0.5 + 0.5 + 1) / 3)
