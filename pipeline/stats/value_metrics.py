"""Metrics of a value estimate (value head, verifier or likelihood) against the outcomes."""

import numpy as np
from numpy.typing import ArrayLike

from pipeline.stats.calibration import calibration
from pipeline.stats.ranking import auroc, best_of_n_accuracy, within_question_auroc_mean


def value_metrics(
    values_N: ArrayLike, right_N: ArrayLike, question_N: ArrayLike
) -> dict[str, float]:
    """Explained variance, calibration and ranking metrics by name; NaN where one is undefined.

    `right_N` holds outcomes (1 right, 0 wrong) or shares of right continuations.
    """
    values_N, right_N = (np.asarray(x, dtype=np.float64) for x in (values_N, right_N))
    within_question, compared = within_question_auroc_mean(values_N, right_N, question_N)
    return {
        "n": len(values_N),
        "right": float(right_N.mean()),
        "explained_variance": explained_variance(values_N, right_N),
        "brier": float(np.square(values_N - right_N).mean()),
        "calibration_error": calibration(values_N, right_N).ece,
        "auroc": auroc(values_N, right_N),
        "within_question_auroc_mean": within_question,
        "questions_compared": compared,
        "best_of_n": best_of_n_accuracy(values_N, right_N, question_N),
    }


def explained_variance(values_N: ArrayLike, returns_N: ArrayLike) -> float:
    """1 - Var[R - V] / Var[R]: 1 for a perfect value function, 0 for a constant one.

    NaN if R is constant or empty.

    >>> explained_variance([0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 4.0, 4.0])
    0.75
    """
    values_N, returns_N = (np.asarray(x, dtype=np.float64) for x in (values_N, returns_N))
    # Not `var() == 0`: the rounded mean of equal numbers may differ from each of them.
    if len(returns_N) == 0 or returns_N.min() == returns_N.max():
        return float("nan")
    return 1 - float((returns_N - values_N).var() / returns_N.var())
