"""Scores of an evaluation, each with its interval. Pure functions of outcomes.

Q  questions, the unit that is resampled: an evaluation is a sample of questions
G  samples of one question
"""

from collections.abc import Sequence
from math import comb

from pipeline.grading import same_answer
from pipeline.search.consensus import clusters
from pipeline.stats.intervals import Estimate, accuracy, bootstrap_mean, bounded_mean


def majority_at_k(
    texts_QG: Sequence[Sequence[str]],
    expected_Q: Sequence[str],
    k: int,
    confidence: float = 0.95,
    questions_Q: Sequence[str] | None = None,
) -> Estimate:
    """Accuracy of the answer most of the first k samples agree on (maj@k, arXiv:2203.11171).

    Votes and ties are those of the consensus strategy: one rule for search and metric. With the
    questions, 20% and 20 agree where a percentage is asked for.

    >>> majority_at_k([["7", "8", "8"]], ["8"], k=3).mean
    1.0
    """
    questions_Q = [""] * len(expected_Q) if questions_Q is None else questions_Q
    correct_Q = []
    for texts, expected, question in zip(texts_QG, expected_Q, questions_Q, strict=True):
        _require_samples(len(texts), k)
        groups = clusters(texts[:k], question=question)
        correct_Q.append(bool(groups) and same_answer(texts[groups[0][0]], expected, question))
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


def _require_samples(n: int, k: int) -> None:
    if not 1 <= k <= n:
        raise ValueError(f"k={k} of n={n} samples: k must lie between 1 and n; draw more samples")
