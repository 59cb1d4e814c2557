"""Ranking quality of scores: AUROC over all samples or within each question, and best-of-n.

N samples, each with a score, an outcome and the question it answers. An outcome is 1 for a right
sample and 0 for a wrong one; a share of right continuations counts as right above 0.5.

The AUROC over all samples is also high for a score that depends on the question alone.
Within a question such a score has 0.5, and a search chooses among samples of one question.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike


def auroc(scores_N: ArrayLike, right_N: ArrayLike) -> float:
    """Area under the ROC curve: share of (right, wrong) pairs whose right sample scores higher.

    Ties count half (Mann-Whitney U). NaN unless there are right and wrong samples.

    >>> auroc([3, 2, 2, 1], [True, True, False, False])  # 3.5 of 4 pairs
    0.875
    """
    won, pairs = _pairs_won(np.asarray(scores_N), _is_right(right_N))
    return won / pairs if pairs else float("nan")


def within_question_auroc_pooled(
    scores_N: ArrayLike, right_N: ArrayLike, question_N: ArrayLike
) -> float:
    """AUROC over pairs of samples of the same question, with the pairs of all questions pooled.

    A question weighs as much as it has (right, wrong) pairs. NaN without a pair.

    >>> within_question_auroc_pooled([0.9, 0.8, 0.2, 0.1], [1, 0, 0, 1], [0, 0, 1, 1])
    0.5
    """
    counts = [_pairs_won(s, r) for s, r in _by_question(question_N, scores_N, _is_right(right_N))]
    won, pairs = (sum(column) for column in zip(*counts, strict=True)) if counts else (0, 0)
    return won / pairs if pairs else float("nan")


def within_question_auroc_mean(
    scores_N: ArrayLike, right_N: ArrayLike, question_N: ArrayLike
) -> tuple[float, int]:
    """(mean of the AUROCs of single questions, number of questions averaged).

    Every question with right and wrong samples weighs the same. (NaN, 0) without one.

    >>> within_question_auroc_mean([0.9, 0.8, 0.7, 0.2, 0.1], [1, 0, 0, 0, 1], [0, 0, 0, 1, 1])
    (0.5, 2)
    """
    counts = [_pairs_won(s, r) for s, r in _by_question(question_N, scores_N, _is_right(right_N))]
    areas = [won / pairs for won, pairs in counts if pairs]
    return (sum(areas) / len(areas) if areas else float("nan")), len(areas)


def best_of_n_accuracy(scores_N: ArrayLike, right_N: ArrayLike, question_N: ArrayLike) -> float:
    """Mean outcome of each question's highest-scoring sample; samples that tie are averaged.

    >>> best_of_n_accuracy([0.9, 0.1, 0.5, 0.5], [1, 0, 0, 1], [0, 0, 1, 1])
    0.75
    """
    outcomes_N = np.asarray(right_N, dtype=np.float64)
    groups = _by_question(question_N, scores_N, outcomes_N)
    return float(np.mean([outcomes[scores == scores.max()].mean() for scores, outcomes in groups]))


def _is_right(right_N: ArrayLike) -> np.ndarray:
    return np.asarray(right_N, dtype=np.float64) > 0.5


def _pairs_won(scores_N: np.ndarray, right_N: np.ndarray) -> tuple[float, int]:
    """(pairs whose right sample scores higher, ties half; number of (right, wrong) pairs)."""
    right, wrong = scores_N[right_N], np.sort(scores_N[~right_N])
    below = np.searchsorted(wrong, right, side="left")
    up_to = np.searchsorted(wrong, right, side="right")
    return float((below + up_to).sum()) / 2, len(right) * len(wrong)


def _by_question(question_N: ArrayLike, *columns_N: ArrayLike) -> Iterator[tuple[np.ndarray, ...]]:
    """The columns' rows of each question, in the order of the question numbers."""
    question_N = np.asarray(question_N)
    order_N = question_N.argsort(kind="stable")
    starts = np.flatnonzero(np.diff(question_N[order_N])) + 1
    if not len(order_N):
        return iter(())
    return zip(*(np.split(np.asarray(c)[order_N], starts) for c in columns_N), strict=True)
