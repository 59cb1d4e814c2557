"""Means with confidence intervals: Wilson and bootstrap."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist

import numpy as np


@dataclass(frozen=True)
class Estimate:
    """A mean over questions with its confidence interval."""

    mean: float
    low: float
    high: float


def accuracy(correct_Q: Sequence[bool], confidence: float = 0.95) -> Estimate:
    """Proportion of right answers with its Wilson interval.

    >>> accuracy([True, True, False, False]).mean
    0.5
    """
    return bounded_mean([float(c) for c in correct_Q], confidence)


def wilson(successes: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """(low, high) of a proportion: Wilson's score interval (JASA 22, 1927).

        (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n),  p = successes / n

    Unlike the normal interval p -+ z standard errors, it stays within [0, 1] and keeps a width at
    0 and n successes.

    Raises:
        ValueError: n < 1, successes outside of [0, n], or a confidence outside of (0, 1).

    >>> [round(bound, 3) for bound in wilson(10, 20)]
    [0.299, 0.701]
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(
            f"successes={successes} of n={n}: n must be at least 1 and not below successes"
        )
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence} must lie between 0 and 1, as in 0.95")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    p = successes / n
    scale = 1 + z * z / n
    centre = (p + z * z / (2 * n)) / scale
    half = z * sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / scale
    # At 0 and n successes rounding may push a bound past the proportion itself.
    return min(p, max(0.0, centre - half)), max(p, min(1.0, centre + half))


def bounded_mean(values_Q: Sequence[float], confidence: float = 0.95) -> Estimate:
    """Mean of values in [0, 1] with the Wilson interval of their sum.

    For values between 0 and 1 the interval is conservative: among variables in [0, 1] with the same
    mean, a Bernoulli variable has the largest variance. A bootstrap interval would have no width
    where every question scores 0.

    Raises:
        ValueError: no values.
    """
    if not len(values_Q):
        raise ValueError("no questions to score: the mean of nothing is unknown")
    total = sum(values_Q)
    return Estimate(total / len(values_Q), *wilson(total, len(values_Q), confidence))


def bootstrap_mean(
    values_Q: Sequence[float], *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Estimate:
    """Mean with its percentile bootstrap interval (Efron 1979).

    Resampling n values is a multinomial draw over the distinct ones, so no matrix of
    resamples x n indices is needed. Paired differences of outcomes have three distinct values.

    Raises:
        ValueError: no values.
    """
    if not len(values_Q):
        raise ValueError("no questions to resample: the mean of nothing is unknown")
    distinct, counts = np.unique(np.asarray(values_Q, dtype=np.float64), return_counts=True)
    n = int(counts.sum())
    rng = np.random.default_rng(seed)
    rows = max(1, 2_000_000 // len(distinct))  # resamples per block: about 16 MB
    blocks = [min(rows, resamples - start) for start in range(0, resamples, rows)]
    means = np.concatenate([rng.multinomial(n, counts / n, size=b) @ distinct / n for b in blocks])
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Estimate(float(distinct @ counts / n), float(low), float(high))
