"""Calibration of confidences: reliability bins, expected calibration error and Brier score.

A confidence is a number in [0, 1] that estimates the probability that an answer is right: the value
head's V under a reward of 1 for a right answer, or the share of votes for an answer.
"""

from dataclasses import dataclass
from math import isnan

import numpy as np
from numpy.typing import ArrayLike

from pipeline.stats.intervals import Estimate, bounded_mean
from pipeline.stats.ranking import auroc


@dataclass(frozen=True)
class Bin:
    """One bin of a reliability diagram: mean confidence, and share right with Wilson interval."""

    n: int
    confidence: float
    right: Estimate


@dataclass(frozen=True)
class Calibration:
    """Calibration metrics of a set of answers.

    ece    expected calibration error, sum of n_b / n |right_b - confidence_b| over bins
    brier  mean of (confidence - right)^2
    auroc  AUROC over all answers, of the confidences as given; None where all are right, or none
    """

    ece: float
    brier: float
    auroc: float | None
    bins: list[Bin]


def calibration(confidence_N: ArrayLike, right_N: ArrayLike, bins: int = 10) -> Calibration:
    """Calibration over bins of equal width (arXiv:1706.04599, equation 3).

    Confidences outside of [0, 1], which a value head may give, are clipped for bins and Brier
    score, but not for the AUROC, where clipping would make ties of them. `right_N` may hold shares
    of right continuations instead of outcomes. Empty bins are left out.

    Raises:
        ValueError: no answers, fewer than 1 bin, unequal lengths, or a confidence that is not
            finite.

    >>> found = calibration([0.9, 0.9, 0.1, 0.1], [True, True, False, True])
    >>> round(found.ece, 3), found.auroc  # (0.1 + 0.4) / 2; 2.5 of 3 pairs
    (0.25, 0.8333333333333334)
    """
    given = np.asarray(confidence_N, dtype=np.float64)
    confidence = np.clip(given, 0.0, 1.0)
    right = np.asarray(right_N, dtype=np.float64)
    if len(confidence) == 0:
        raise ValueError("no answers to calibrate: give at least one")
    if bins < 1:
        raise ValueError(f"bins={bins} must be at least 1")
    if len(confidence) != len(right):
        raise ValueError(f"{len(confidence)} confidences for {len(right)} answers: one for each")
    if not np.isfinite(given).all():
        raise ValueError("a confidence is not a number: leave answers without a value out")
    bin_N = np.minimum((confidence * bins).astype(int), bins - 1)
    members = [bin_N == b for b in np.unique(bin_N)]
    filled = [
        Bin(int(m.sum()), float(confidence[m].mean()), bounded_mean(right[m].tolist()))
        for m in members
    ]
    gaps = [b.n * abs(b.right.mean - b.confidence) for b in filled]
    brier = float(((confidence - right) ** 2).mean())
    area = auroc(given, right)
    return Calibration(sum(gaps) / len(right), brier, None if isnan(area) else area, filled)
