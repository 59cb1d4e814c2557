"""A rating out of solved problems, as on Codeforces.

A contestant of rating r solves a problem of rating d with chance p = 1 / (1 + 10^((d - r) / 400)):
the expected score of Elo's system, and the meaning Codeforces gives a problem's rating.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf, log
from statistics import NormalDist

import numpy as np

LOWEST, HIGHEST = -2000.0, 6000.0  # a bound outside of these says nothing any more


@dataclass(frozen=True)
class Rating:
    """The likeliest rating with its interval; infinite where the outcomes leave an end open."""

    rating: float
    low: float
    high: float
    n: int


def chance_to_solve(rating: float, problem_rating: float) -> float:
    """
    >>> chance_to_solve(1500, 1500), round(chance_to_solve(1900, 1500), 3)
    (0.5, 0.909)
    """
    return 1 / (1 + 10 ** ((problem_rating - rating) / 400))


def elo(
    problem_ratings_Q: Sequence[float], solved_Q: Sequence[bool], confidence: float = 0.95
) -> Rating:
    """The rating of maximum likelihood, and the ratings a likelihood-ratio test does not reject.

        L(r) = sum_Q log p(r) if solved, log(1 - p(r)) if not;   L' = 0 where the solved problems
        are as many as expected;   interval: 2 (L(best) - L(r)) <= chi2(1, confidence)

    Where everything was solved, or nothing, the likeliest rating is infinite and one end is known.

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
    if solved.all():
        best = inf
    elif not solved.any():
        best = -inf
    else:
        best = _falls_to_zero(lambda r: solved.sum() - _expected(r, ratings))
    top = 0.0 if np.isinf(best) else _log_likelihood(best, ratings, solved)
    # Half of chi2 with one degree of freedom is half of z squared.
    allowed = NormalDist().inv_cdf(0.5 + confidence / 2) ** 2 / 2

    def short(r: float) -> float:
        return top - _log_likelihood(r, ratings, solved) - allowed

    low = -inf if best == -inf else _falls_to_zero(short, LOWEST, min(best, HIGHEST))
    high = inf if best == inf else _falls_to_zero(lambda r: -short(r), max(best, LOWEST), HIGHEST)
    return Rating(float(best), float(low), float(high), len(ratings))


def percentile(rating: float, others: Sequence[float]) -> float:
    """Share of the others who stand below, ties half, in percent.

    >>> percentile(1500, [1000, 1500, 2000, 2500])
    37.5
    """
    if not len(others):
        raise ValueError("no ratings to stand among: give those of the contestants")
    below = sum(o < rating for o in others) + sum(o == rating for o in others) / 2
    return 100 * below / len(others)


def _expected(rating: float, ratings: np.ndarray) -> float:
    return float((1 / (1 + 10 ** ((ratings - rating) / 400))).sum())


def _log_likelihood(rating: float, ratings: np.ndarray, solved: np.ndarray) -> float:
    # log(1 + exp(x)) without overflow; x is positive where the outcome is a surprise.
    x = (ratings - rating) * log(10) / 400
    return float(-np.logaddexp(0, np.where(solved, x, -x)).sum())


def _falls_to_zero(
    function: Callable[[float], float], low: float = LOWEST, high: float = HIGHEST
) -> float:
    """Where a falling function crosses zero, by halving; infinite where it does not."""
    if function(low) < 0:
        return -inf
    if function(high) > 0:
        return inf
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) > 0 else (low, middle)
    return (low + high) / 2
