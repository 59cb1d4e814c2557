"""Scores of an evaluation, each with its interval. Pure functions of outcomes.

Q  questions, the unit that is resampled: an evaluation is a sample of questions
G  samples of one question
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb, sqrt
from statistics import NormalDist

import numpy as np

from pipeline.answers import same_answer
from pipeline.search.consensus import clusters


@dataclass(frozen=True)
class Estimate:
    """A mean over questions and the interval it may well have missed the truth by."""

    mean: float
    low: float
    high: float


def accuracy(correct_Q: Sequence[bool], confidence: float = 0.95) -> Estimate:
    """Share of right answers with its Wilson interval.

    >>> accuracy([True, True, False, False]).mean
    0.5
    """
    return bounded_mean([float(c) for c in correct_Q], confidence)


def wilson(successes: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """(low, high) of a share, Wilson's score interval (JASA 22, 1927).

        (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n),  p = successes / n

    Unlike p -+ 1.96 standard errors it stays within [0, 1] and has a width at 0 and n successes.

    >>> [round(bound, 3) for bound in wilson(10, 20)]
    [0.299, 0.701]
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"successes={successes} of n={n}: n must be at least 1 and hold them all")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence} must lie between 0 and 1, as in 0.95")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    p = successes / n
    scale = 1 + z * z / n
    centre = (p + z * z / (2 * n)) / scale
    half = z * sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / scale
    # Rounding may push a bound past the share itself at 0 and n successes.
    return min(p, max(0.0, centre - half)), max(p, min(1.0, centre + half))


def majority_at_k(
    texts_QG: Sequence[Sequence[str]],
    expected_Q: Sequence[str],
    k: int,
    confidence: float = 0.95,
) -> Estimate:
    """Accuracy of the answer most of the first k samples agree on (maj@k, arXiv:2203.11171).

    Votes and ties are those of the consensus strategy: one rule for search and metric.

    >>> majority_at_k([["7", "8", "8"]], ["8"], k=3).mean
    1.0
    """
    correct_Q = []
    for texts, expected in zip(texts_QG, expected_Q, strict=True):
        _require_samples(len(texts), k)
        groups = clusters(texts[:k])
        correct_Q.append(bool(groups) and same_answer(texts[groups[0][0]], expected))
    return accuracy(correct_Q, confidence)


def pass_at_k(correct_QG: Sequence[Sequence[bool]], k: int, confidence: float = 0.95) -> Estimate:
    """Chance that at least one of k samples is right, averaged over the questions.

    >>> pass_at_k([[True, False], [False, False]], k=1).mean
    0.25
    """
    chances_Q = [unbiased_pass_at_k(len(row), sum(map(bool, row)), k) for row in correct_QG]
    return bounded_mean(chances_Q, confidence)


def unbiased_pass_at_k(n: int, c: int, k: int) -> float:
    """1 - C(n - c, k) / C(n, k): the share of k-subsets of n samples, c of them right, that hold
    a right one (arXiv:2107.03374, equation 1).

    >>> unbiased_pass_at_k(4, 1, 2)
    0.5
    """
    _require_samples(n, k)
    if not 0 <= c <= n:
        raise ValueError(f"c={c} right samples cannot come out of n={n}")
    return 1 - comb(n - c, k) / comb(n, k)


def avg_at_k(correct_QG: Sequence[Sequence[bool]], confidence: float = 0.95) -> Estimate:
    """Accuracy of a single sample, averaged over the k of every question, then over the questions.

    >>> avg_at_k([[True, False], [True, True]]).mean
    0.75
    """
    for row in correct_QG:
        _require_samples(len(row), 1)
    return bounded_mean([sum(map(bool, row)) / len(row) for row in correct_QG], confidence)


def mean_tokens(tokens_Q: Sequence[int], confidence: float = 0.95, seed: int = 0) -> Estimate:
    """Tokens a question costs, with the percentile bootstrap interval over questions.

    >>> mean_tokens([40, 40, 40])
    Estimate(mean=40.0, low=40.0, high=40.0)
    """
    return bootstrap_mean(tokens_Q, confidence=confidence, seed=seed)


def bounded_mean(values_Q: Sequence[float], confidence: float = 0.95) -> Estimate:
    """Mean of values in [0, 1] with the Wilson interval of their sum.

    Exact in spirit for outcomes, conservative for shares: nothing within [0, 1] varies more than a
    coin of the same mean. A bootstrap would claim certainty where every question scores 0.
    """
    if not values_Q:
        raise ValueError("no questions to score: the mean of nothing is unknown")
    total = sum(values_Q)
    return Estimate(total / len(values_Q), *wilson(total, len(values_Q), confidence))


def bootstrap_mean(
    values_Q: Sequence[float], *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Estimate:
    """Mean with its percentile bootstrap interval (Efron 1979).

    Resampling n values is a multinomial draw over the distinct ones, which needs no matrix of
    resamples x n indices: three columns for paired differences of outcomes.
    """
    if not len(values_Q):
        raise ValueError("no questions to resample: the mean of nothing is unknown")
    distinct, counts = np.unique(np.asarray(values_Q, dtype=np.float64), return_counts=True)
    n = int(counts.sum())
    rng = np.random.default_rng(seed)
    rows = max(1, 2_000_000 // len(distinct))  # draws a block: about 16 MB
    blocks = [min(rows, resamples - start) for start in range(0, resamples, rows)]
    means = np.concatenate([rng.multinomial(n, counts / n, size=b) @ distinct / n for b in blocks])
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Estimate(float(distinct @ counts / n), float(low), float(high))


def _require_samples(n: int, k: int) -> None:
    if not 1 <= k <= n:
        raise ValueError(f"k={k} of n={n} samples: k must lie between 1 and n; draw more samples")
