"""Elo rating estimated from solved and unsolved problems of known rating, as on Codeforces.

A contestant of rating r solves a problem of rating d with probability
p = 1 / (1 + 10^((d - r) / 400)): the expected score of the Elo system, and the definition of a
problem's rating on Codeforces.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf, log
from statistics import NormalDist

import numpy as np

# The search goes so many points beyond the easiest and the hardest problem: a chance of 1e-10.
MARGIN = 4000.0


@dataclass(frozen=True)
class Rating:
    """Maximum-likelihood rating with its interval; infinite where the outcomes give no bound."""

    rating: float
    low: float
    high: float
    n: int


def chance_to_solve(rating: float, problem_rating: float) -> float:
    """Probability that a contestant solves a problem.

    >>> chance_to_solve(1500, 1500), round(chance_to_solve(1900, 1500), 3)
    (0.5, 0.909)
    """
    return 1 / (1 + 10 ** ((problem_rating - rating) / 400))


def elo(
    problem_ratings_Q: Sequence[float], solved_Q: Sequence[bool], confidence: float = 0.95
) -> Rating:
    """Maximum-likelihood rating and its likelihood-ratio interval.

        L(r) = sum_Q log p(r) if solved, log(1 - p(r)) if not
        estimate: L'(r) = 0, where the expected number of solved problems equals the actual one
        interval: all r with 2 (L(estimate) - L(r)) <= chi2(1, confidence)

    If every problem was solved, or none, the estimate is infinite and one bound is finite.

    Raises:
        ValueError: no problems, unequal lengths, or a confidence outside of (0, 1).

    >>> found = elo([1000, 2000], [True, False])
    >>> round(found.rating), found.low < found.rating < found.high
    (1500, True)
    """
    ratings, solved = np.asarray(problem_ratings_Q, dtype=np.float64), np.asarray(solved_Q, bool)
    if len(ratings) == 0 or len(ratings) != len(solved):
        raise ValueError(
            f"{len(ratings)} problem ratings for {len(solved)} outcomes: give one for each, "
            "and one at least"
        )
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence} must lie between 0 and 1, as in 0.95")
    lowest, highest = float(ratings.min()) - MARGIN, float(ratings.max()) + MARGIN
    if solved.all():
        best = inf
    elif not solved.any():
        best = -inf
    else:
        best = _root_of_decreasing(
            lambda r: solved.sum() - _expected_solved(r, ratings), lowest, highest
        )
    best_likelihood = 0.0 if np.isinf(best) else _log_likelihood(best, ratings, solved)
    # The chi2 quantile with one degree of freedom is the square of the normal quantile.
    allowed = NormalDist().inv_cdf(0.5 + confidence / 2) ** 2 / 2

    def excess(r: float) -> float:
        return best_likelihood - _log_likelihood(r, ratings, solved) - allowed

    low, high = -inf, inf
    if best != -inf:
        low = _root_of_decreasing(excess, lowest, min(best, highest))
    if best != inf:
        high = _root_of_decreasing(lambda r: -excess(r), max(best, lowest), highest)
    return Rating(float(best), float(low), float(high), len(ratings))


def percentile(rating: float, others: Sequence[float]) -> float:
    """Percentile rank of a rating among others, in percent; ties count half.

    Raises:
        ValueError: there are no other ratings.

    >>> percentile(1500, [1000, 1500, 2000, 2500])
    37.5
    """
    if not len(others):
        raise ValueError("no ratings to compare with: give those of the contestants")
    below = sum(o < rating for o in others) + sum(o == rating for o in others) / 2
    return 100 * below / len(others)


def _expected_solved(rating: float, ratings: np.ndarray) -> float:
    # 1 / (1 + exp(x)) without overflow.
    return float(np.exp(-np.logaddexp(0, (ratings - rating) * log(10) / 400)).sum())


def _log_likelihood(rating: float, ratings: np.ndarray, solved: np.ndarray) -> float:
    # log(1 + exp(x)) without overflow; x > 0 where the outcome was the less likely one.
    x = (ratings - rating) * log(10) / 400
    return float(-np.logaddexp(0, np.where(solved, x, -x)).sum())


def _root_of_decreasing(function: Callable[[float], float], low: float, high: float) -> float:
    """Root of a decreasing function by bisection; infinite if it has none in [low, high]."""
    if function(low) < 0:
        return -inf
    if function(high) > 0:
        return inf
    # Numbers above 1e10 are further apart than the tolerance.
    while high - low > 1e-6 and low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if function(middle) > 0 else (low, middle)
    return (low + high) / 2
