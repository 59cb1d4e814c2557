"""Does a confidence mean what it says: reliability, errors, and how well it ranks.

A confidence is a number in [0, 1] that claims to be the chance that an answer is right: the value
head's V under a reward of 1 for a right answer, or the share of a vote.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.stats.intervals import Estimate, accuracy


@dataclass(frozen=True)
class Bin:
    """Answers of like confidence: what they claim on average, and how many are right."""

    n: int
    confidence: float
    right: Estimate


@dataclass(frozen=True)
class Calibration:
    """How far confidences can be believed.

    ece    expected calibration error, sum of n_b / n |right_b - confidence_b| over bins
    brier  mean of (confidence - right)^2: calibration and sharpness in one
    auroc  chance that a right answer has the higher confidence; None where all are right, or none
    """

    ece: float
    brier: float
    auroc: float | None
    bins: list[Bin]


def calibration(
    confidence_Q: Sequence[float], correct_Q: Sequence[bool], bins: int = 10
) -> Calibration:
    """Calibration over bins of equal width (arXiv:1706.04599, equation 3).

    A confidence outside of [0, 1], as a value head may give, counts as the nearest that is inside.

    >>> found = calibration([0.9, 0.9, 0.1, 0.1], [True, True, False, True])
    >>> round(found.ece, 3), found.auroc  # (0.1 + 0.4) / 2; 2.5 of 3 pairs
    (0.25, 0.8333333333333334)
    """
    if len(confidence_Q) == 0:
        raise ValueError("no answers to calibrate: ask some questions first")
    if bins < 1:
        raise ValueError(f"bins={bins} must be at least 1")
    confidence = np.clip(np.asarray(confidence_Q, dtype=np.float64), 0.0, 1.0)
    correct = np.asarray(correct_Q, dtype=bool)
    if len(confidence) != len(correct):
        raise ValueError(f"{len(confidence)} confidences for {len(correct)} answers: one for each")
    if not np.isfinite(confidence).all():
        raise ValueError("a confidence is not a number: leave answers without a value out")
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    members = [np.flatnonzero(which == b) for b in range(bins)]
    found = [
        Bin(len(m), float(confidence[m].mean()), accuracy(correct[m].tolist()))
        for m in members
        if len(m)
    ]
    gaps = [b.n * abs(b.right.mean - b.confidence) for b in found]
    brier = float(((confidence - correct) ** 2).mean())
    return Calibration(sum(gaps) / len(correct), brier, auroc(confidence, correct), found)


def auroc(score_Q: Sequence[float], correct_Q: Sequence[bool]) -> float | None:
    """Chance that a right answer scores above a wrong one, ties half: Mann and Whitney's U.

    >>> auroc([3, 2, 2, 1], [True, True, False, False])  # 3.5 of 4 pairs
    0.875
    >>> auroc([1, 2], [True, True]) is None
    True
    """
    score, correct = np.asarray(score_Q, dtype=np.float64), np.asarray(correct_Q, dtype=bool)
    right, wrong = score[correct], np.sort(score[~correct])
    if not len(right) or not len(wrong):
        return None
    below = np.searchsorted(wrong, right, side="left")
    upto = np.searchsorted(wrong, right, side="right")
    return float((below + upto).sum() / 2 / (len(right) * len(wrong)))


def within_question_auroc(
    score_QG: Sequence[Sequence[float]], correct_QG: Sequence[Sequence[bool]]
) -> float | None:
    """The same among the samples of one question, averaged over all pairs of all questions.

    A score that only knows which questions are hard has 0.5 here, whatever it has over all.

    >>> within_question_auroc([[0.9, 0.8], [0.2, 0.1]], [[True, False], [False, True]])
    0.5
    """
    won = pairs = 0.0
    for score, correct in zip(score_QG, correct_QG, strict=True):
        found = auroc(score, correct)
        if found is not None:
            here = sum(map(bool, correct)) * sum(not c for c in correct)
            won, pairs = won + found * here, pairs + here
    return won / pairs if pairs else None
