"""Scaling law of accuracy in inference tokens: logarithmic up to a saturation point.

    accuracy(t) = a + b log2 min(t, t_s)

Every doubling of the tokens t adds b until t_s, the saturation point (section 6.3 of the paper).
t_s at the largest t observed means that no saturation was observed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.stats.intervals import Estimate

GRID = 100  # candidate saturation points


@dataclass(frozen=True)
class LogLaw:
    """Least-squares fit to the points of one curve; calling it gives the accuracy at some tokens.

    per_doubling  b, accuracy gained per doubling of the tokens before saturation
    saturates_at  t_s in tokens; None if no saturation was observed
    ceiling       accuracy at saturation, or at the largest number of tokens
    r2            coefficient of determination; None for a flat curve
    """

    intercept: float
    per_doubling: float
    saturates_at: float | None
    ceiling: float
    r2: float | None

    def __call__(self, tokens: float) -> float:
        effective = tokens if self.saturates_at is None else min(tokens, self.saturates_at)
        return float(self.intercept + self.per_doubling * np.log2(effective))


def fit_log_law(tokens_K: Sequence[float], accuracy_K: Sequence[float]) -> LogLaw:
    """Least-squares fit over a grid of saturation points.

    Raises:
        ValueError: unequal lengths, fewer than 3 different costs, a cost that is not positive, or a
            number that is not finite.

    >>> law = fit_log_law([10, 20, 40, 80, 160], [0.2, 0.3, 0.4, 0.4, 0.4])
    >>> round(law.per_doubling, 3), round(law.saturates_at), round(law.r2, 3)
    (0.1, 40, 1.0)
    """
    x, y = np.log2(_checked_costs(tokens_K)), np.asarray(accuracy_K, dtype=np.float64)
    if len(x) != len(y):
        raise ValueError(f"{len(x)} costs for {len(y)} accuracies: give one for each")
    if not np.isfinite(y).all():
        raise ValueError("an accuracy is not a finite number: leave its point out")
    ends_E, (a_ER, b_ER, errors_ER) = _fit_all(x, y[None])
    best = _best_fit(errors_ER[:, 0])
    a, b = float(a_ER[best, 0]), float(b_ER[best, 0])
    total = float(((y - y.mean()) ** 2).sum())
    saturates_at = None if best == len(ends_E) - 1 else float(2 ** ends_E[best])
    r2 = None if total < 1e-12 else 1 - float(errors_ER[best, 0]) / total
    return LogLaw(a, b, saturates_at, float(a + b * ends_E[best]), r2)


def per_doubling_interval(
    tokens_K: Sequence[float],
    accuracy_QK: np.ndarray,
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """b with its percentile bootstrap interval over questions.

    The points of a curve come from the same questions and are correlated, so an interval from the
    residuals of the fit would be too narrow.
    """
    accuracy = np.asarray(accuracy_QK, dtype=np.float64)
    questions = len(accuracy)
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(questions, np.full(questions, 1 / questions), size=resamples)
    resampled_RK = weights @ accuracy / questions
    _ends_E, (_a_ER, b_ER, errors_ER) = _fit_all(np.log2(_checked_costs(tokens_K)), resampled_RK)
    slopes = [b_ER[_best_fit(errors_ER[:, r]), r] for r in range(resamples)]
    tail = (1 - confidence) / 2
    low, high = np.quantile(slopes, [tail, 1 - tail])
    mean = fit_log_law(tokens_K, accuracy.mean(axis=0)).per_doubling
    return Estimate(mean, float(low), float(high))


def _fit_all(x_K: np.ndarray, y_RK: np.ndarray) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """(ends_E, (a_ER, b_ER, squared errors_ER)) of least-squares lines in min(x, end), R curves."""
    # With an end before the second cost the slope would be undetermined.
    ends = np.linspace(np.unique(x_K)[1], x_K.max(), GRID)
    clipped_EK = np.minimum(x_K, ends[:, None])
    centred_EK = clipped_EK - clipped_EK.mean(axis=1, keepdims=True)
    mean_R = y_RK.mean(axis=1)
    b_ER = centred_EK @ y_RK.T / (centred_EK**2).sum(axis=1, keepdims=True)
    a_ER = mean_R - b_ER * clipped_EK.mean(axis=1, keepdims=True)
    total_R = ((y_RK - mean_R[:, None]) ** 2).sum(axis=1)
    errors_ER = total_R - b_ER**2 * (centred_EK**2).sum(axis=1, keepdims=True)
    return ends, (a_ER, b_ER, np.maximum(errors_ER, 0.0))


def _best_fit(errors_E: np.ndarray) -> int:
    """Index of the smallest error, the last of equal ones: no saturation unless it fits better."""
    return int(np.flatnonzero(errors_E <= errors_E.min() + 1e-12)[-1])


def _checked_costs(tokens: Sequence[float]) -> np.ndarray:
    found = np.asarray(tokens, dtype=np.float64)
    if not np.isfinite(found).all():
        raise ValueError("a cost is not a finite number: leave its point out")
    if len(np.unique(found)) < 3 or found.min() <= 0:
        raise ValueError(
            f"{len(np.unique(found))} different costs, the smallest {found.min():g}: a law needs "
            "three above 0; draw more samples"
        )
    return found
