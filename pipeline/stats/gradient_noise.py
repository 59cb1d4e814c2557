"""Signal and noise of stochastic gradients, from the inner products of independent ones.

N gradients, each of its own batch of n samples, are G plus noise of covariance Sigma / n:

    E[g_i . g_j] = |G|^2                     i != j
    E[g_i . g_i] = |G|^2 + tr(Sigma) / n
    B_simple     = tr(Sigma) / |G|^2         the gradient noise scale, in samples

(McCandlish et al. 2018, arXiv:1812.06162). The gradient of k batches together is the mean of
theirs, so gram_NN, the N x N inner products, is all that a statistic needs; no permutation of the
batches changes an estimate. Two batches of B samples have the cosine B / (B + B_simple). That
number is also the length of the best step with B samples, as a share of the best step without noise
(equation 2.7).
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import hypot, inf, nan, sqrt

import numpy as np

from pipeline.stats.intervals import Estimate

Z95 = 1.959964


@dataclass(frozen=True)
class GradientNoise:
    """The expected gradient's squared norm, the noise of one sample, and the noise scale."""

    squared_norm: Estimate  # |G|^2
    trace: float  # tr(Sigma) of one sample
    noise_scale: Estimate  # B_simple in samples; infinite where |G|^2 may be 0

    def expected_cosine(self, samples: float) -> float:
        """Cosine of two batches of so many samples, B / (B + B_simple); 0 for an infinite scale."""
        return samples / (samples + self.noise_scale.mean)


def norm_and_trace(
    small_square: float, large_square: float, small: float, large: float
) -> tuple[float, float]:
    """Return (|G|^2, tr(Sigma)) without bias, from the mean squared norms of gradients of `small`
    and of `large` samples (McCandlish et al., appendix A.1).

    >>> norm_and_trace(4.0 + 6.0 / 1, 4.0 + 6.0 / 2, 1, 2)
    (4.0, 6.0)
    """
    squared_norm = (large * large_square - small * small_square) / (large - small)
    return squared_norm, (small_square - large_square) / (1 / small - 1 / large)


def gradient_noise(gram_NN: np.ndarray, samples: int) -> GradientNoise:
    """Return signal and noise of N gradients of `samples` samples each; 95% intervals by jackknife.

    The two batch sizes are one gradient's and that of all N.

    Raises:
        ValueError: fewer than 3 gradients.
    """
    count = len(gram_NN)
    if count < 3:
        raise ValueError(f"{count} gradients give no interval; give at least 3 independent ones")

    def both(gram: np.ndarray) -> tuple[float, float]:
        single, together = float(np.trace(gram)) / len(gram), float(gram.mean())
        return norm_and_trace(single, together, samples, samples * len(gram))

    squared_norm, trace = both(gram_NN)
    norm = jackknife(lambda kept: both(gram_NN[np.ix_(kept, kept)])[0], count)
    return GradientNoise(
        squared_norm=norm,
        trace=trace,
        noise_scale=Estimate(*(_ratio(trace, x) for x in (squared_norm, norm.high, norm.low))),
    )


def pair_cosines(gram_NN: np.ndarray, together: int) -> np.ndarray:
    """Return the cosines of all pairs of batches of `together` neighbouring gradients each.

    Gradients that are left over are not used. The cosine with a gradient of 0 is 0.

    >>> pair_cosines(np.array([[4.0, 1.0], [1.0, 1.0]]), 1).tolist()
    [0.5]
    """
    gram_MM = _blocks(gram_NN, together, together)
    norms_M = _norms(gram_MM)
    cosines_MM = gram_MM / np.outer(norms_M, norms_M)
    return cosines_MM[np.triu_indices(len(gram_MM), 1)]


def mean_pair_cosine(gram_NN: np.ndarray, together: int) -> Estimate:
    """Return the mean of `pair_cosines` with its jackknife interval over the batches; the interval
    is NaN for two batches."""
    gram_MM = _blocks(gram_NN, together, together)
    if len(gram_MM) < 3:
        return Estimate(float(pair_cosines(gram_MM, 1).mean()), nan, nan)
    found = jackknife(
        lambda kept: float(pair_cosines(gram_MM[np.ix_(kept, kept)], 1).mean()), len(gram_MM)
    )
    return _as_cosine(found)


def cosines_with(
    gram_NN: np.ndarray, cross_NM: np.ndarray, other_MM: np.ndarray, together: int
) -> np.ndarray:
    """Return the cosine of each batch of `together` gradients with the mean of M other ones.

    Args:
        cross_NM: inner products of the N gradients with the M others; other_MM: among the others.
    """
    norms = _norms(_blocks(gram_NN, together, together)) * sqrt(other_MM.mean())
    return _blocks(cross_NM, together, cross_NM.shape[1])[:, 0] / norms


def expected_cosine_with(
    gram_NN: np.ndarray, cross_NM: np.ndarray, other_MM: np.ndarray
) -> Estimate:
    """Return the cosine of two expected gradients, each term of it without bias, with its interval.

        E[g . h] / sqrt(|G|^2 |H|^2)

    NaN where the estimate of a squared norm is not above 0: then noise hides the direction. Mean
    and interval are kept within [-1, 1].
    """

    def cosine(kept_N: np.ndarray, kept_M: np.ndarray) -> float:
        own = _mean_off_diagonal(gram_NN[np.ix_(kept_N, kept_N)])
        other = _mean_off_diagonal(other_MM[np.ix_(kept_M, kept_M)])
        if own <= 0 or other <= 0:
            return np.nan
        return float(cross_NM[np.ix_(kept_N, kept_M)].mean()) / sqrt(own * other)

    all_N, all_M = (np.arange(n) for n in cross_NM.shape)
    # The two sets of gradients are independent, so the variances add up.
    error = hypot(
        standard_error(lambda kept: cosine(kept, all_M), len(all_N)),
        standard_error(lambda kept: cosine(all_N, kept), len(all_M)),
    )
    mean = cosine(all_N, all_M)
    return _as_cosine(Estimate(mean, mean - Z95 * error, mean + Z95 * error))


def jackknife(statistic: Callable[[np.ndarray], float], count: int) -> Estimate:
    """Return a statistic of `count` independent items with its 95% jackknife interval.

    `statistic` gets the indices of the items that it is to use.
    """
    mean, error = statistic(np.arange(count)), standard_error(statistic, count)
    return Estimate(mean, mean - Z95 * error, mean + Z95 * error)


def standard_error(statistic: Callable[[np.ndarray], float], count: int) -> float:
    """Return the jackknife standard error of a statistic of `count` independent items (Tukey 1958).

        se^2 = (n - 1) / n * sum_i (statistic without i - their mean)^2

    >>> round(standard_error(lambda kept: float(np.array([1.0, 2.0, 3.0])[kept].mean()), 3), 4)
    0.5774
    """
    everything = np.arange(count)
    without = np.array([statistic(np.delete(everything, i)) for i in everything])
    return sqrt((count - 1) / count * float(np.square(without - without.mean()).sum()))


def _blocks(x_NM: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Means over blocks of rows x columns."""
    n, m = x_NM.shape[0] // rows, x_NM.shape[1] // columns
    return x_NM[: n * rows, : m * columns].reshape(n, rows, m, columns).mean(axis=(1, 3))


def _norms(gram_NN: np.ndarray) -> np.ndarray:
    """Norms of the gradients, infinity in the place of 0, so that the cosine is 0."""
    squares_N = np.diag(gram_NN)
    return np.sqrt(np.where(squares_N > 0, squares_N, inf))


def _mean_off_diagonal(gram_NN: np.ndarray) -> float:
    count = len(gram_NN)
    return float((gram_NN.sum() - np.trace(gram_NN)) / (count * (count - 1)))


def _as_cosine(found: Estimate) -> Estimate:
    """The estimate within [-1, 1], which few noisy gradients may leave; NaN stays."""
    return Estimate(*(float(np.clip(x, -1.0, 1.0)) for x in (found.mean, found.low, found.high)))


def _ratio(trace: float, squared_norm: float) -> float:
    return max(trace, 0.0) / squared_norm if squared_norm > 0 else inf
