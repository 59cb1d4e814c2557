"""Accuracy against what is spent, a law in the logarithm that saturates.

    accuracy(t) = a + b log2 min(t, t_s)

Every doubling of the tokens adds b, until t_s, where nothing more is gained (section 6.3 of the
paper: logarithmic gains that level off). t_s at the largest t seen means that no end is in sight.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.stats.intervals import Estimate

GRID = 100  # places where the law may level off


@dataclass(frozen=True)
class LogLaw:
    """The law of least squares over the points of a curve.

    per_doubling  b, accuracy gained by twice the tokens, before saturation
    saturates_at  t_s in tokens; None where the curve still rises at its end
    r2            share of the variance of the points that the law explains; None for a flat curve
    """

    intercept: float
    per_doubling: float
    saturates_at: float | None
    ceiling: float
    r2: float | None

    def __call__(self, tokens: float) -> float:
        reach = tokens if self.saturates_at is None else min(tokens, self.saturates_at)
        return float(self.intercept + self.per_doubling * np.log2(reach))


def fit_log_law(tokens_K: Sequence[float], accuracy_K: Sequence[float]) -> LogLaw:
    """The law nearest to the points of one curve, at least three of them.

    >>> law = fit_log_law([10, 20, 40, 80, 160], [0.2, 0.3, 0.4, 0.4, 0.4])
    >>> round(law.per_doubling, 3), round(law.saturates_at), round(law.r2, 3)
    (0.1, 40, 1.0)
    """
    x, y = np.log2(_positive(tokens_K)), np.asarray(accuracy_K, dtype=np.float64)
    if len(x) != len(y):
        raise ValueError(f"{len(x)} costs for {len(y)} accuracies: give one for each")
    ends, fits = _candidates(x, y[None])
    errors = fits[2][:, 0]
    best = _last_of_the_best(errors)
    a, b = float(fits[0][best, 0]), float(fits[1][best, 0])
    spread = float(((y - y.mean()) ** 2).sum())
    saturates = None if best == len(ends) - 1 else float(2 ** ends[best])
    reach = ends[best]
    r2 = None if spread < 1e-12 else 1 - float(errors[best]) / spread
    return LogLaw(a, b, saturates, float(a + b * reach), r2)


def per_doubling_interval(
    tokens_K: Sequence[float],
    accuracy_QK: np.ndarray,
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """b with its percentile bootstrap interval over questions.

    The points of a curve rest on the same questions, so an interval out of the residuals of the
    fit would be far too narrow.
    """
    accuracy = np.asarray(accuracy_QK, dtype=np.float64)
    questions = len(accuracy)
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(questions, np.full(questions, 1 / questions), size=resamples)
    _ends, fits = _candidates(np.log2(_positive(tokens_K)), weights @ accuracy / questions)
    slopes = [fits[1][_last_of_the_best(fits[2][:, r]), r] for r in range(resamples)]
    tail = (1 - confidence) / 2
    low, high = np.quantile(slopes, [tail, 1 - tail])
    mean = fit_log_law(tokens_K, accuracy.mean(axis=0)).per_doubling
    return Estimate(mean, float(low), float(high))


def _candidates(x_K: np.ndarray, y_RK: np.ndarray) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """(ends_E, (a_ER, b_ER, squared errors_ER)): straight lines in min(x, end) by least squares."""
    # Before the second point an end would leave a slope that nothing fixes.
    ends = np.linspace(np.sort(x_K)[1], x_K.max(), GRID)
    bent_EK = np.minimum(x_K, ends[:, None])
    centred_EK = bent_EK - bent_EK.mean(axis=1, keepdims=True)
    level_R = y_RK.mean(axis=1)
    b_ER = centred_EK @ y_RK.T / (centred_EK**2).sum(axis=1, keepdims=True)
    a_ER = level_R - b_ER * bent_EK.mean(axis=1, keepdims=True)
    total_R = ((y_RK - level_R[:, None]) ** 2).sum(axis=1)
    errors_ER = total_R - b_ER**2 * (centred_EK**2).sum(axis=1, keepdims=True)
    return ends, (a_ER, b_ER, np.maximum(errors_ER, 0.0))


def _last_of_the_best(errors_E: np.ndarray) -> int:
    """Saturation is claimed only where it explains more than a straight line does."""
    return int(np.flatnonzero(errors_E <= errors_E.min() + 1e-12)[-1])


def _positive(tokens: Sequence[float]) -> np.ndarray:
    found = np.asarray(tokens, dtype=np.float64)
    if len(np.unique(found)) < 3 or found.min() <= 0:
        raise ValueError(
            f"{len(np.unique(found))} different costs, the smallest {found.min():g}: a law needs "
            "three above 0; draw more samples"
        )
    return found
