"""Paired comparison of two variants on the same questions: bootstrap interval and McNemar's test.

Pairing removes the variance that comes from the difficulty of the questions. Both functions take
the outcomes in the same order of questions.
"""

from collections.abc import Sequence
from math import comb

from pipeline.stats.intervals import Estimate, bootstrap_mean


def paired_bootstrap(
    before_Q: Sequence[float],
    after_Q: Sequence[float],
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Estimate:
    """Mean of after - before with its percentile bootstrap interval over questions.

    If no outcome differs, the interval is [0, 0] whatever the number of questions.

    >>> paired_bootstrap([False, False, True, True], [True, True, True, False]).mean
    0.25
    """
    pairs = zip(before_Q, after_Q, strict=True)
    differences_Q = [float(after) - float(before) for before, after in pairs]
    return bootstrap_mean(differences_Q, confidence=confidence, resamples=resamples, seed=seed)


def mcnemar(before_Q: Sequence[bool], after_Q: Sequence[bool]) -> float:
    """Two-sided p-value of McNemar's exact test (Psychometrika 12, 1947).

    Only discordant questions count, b lost and c won. Under the null hypothesis b is binomial with
    probability 1/2: p = min(1, 2 sum_{i <= min(b, c)} C(b + c, i) / 2^(b + c)).

    >>> mcnemar([False] * 5, [True] * 5)  # 2 / 2^5
    0.0625
    """
    pairs = [(bool(x), bool(y)) for x, y in zip(before_Q, after_Q, strict=True)]
    lost = sum(before and not after for before, after in pairs)
    won = sum(after and not before for before, after in pairs)
    tail = sum(comb(lost + won, i) for i in range(min(lost, won) + 1))
    return min(1.0, 2 * tail / 2 ** (lost + won))
