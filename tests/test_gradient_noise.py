"""Noise scale and cosines against sums done by hand, and against gradients of known noise."""

import math

import numpy as np
import pytest

from pipeline.stats.gradient_noise import (
    cosines_with,
    expected_cosine_with,
    gradient_noise,
    jackknife,
    mean_pair_cosine,
    norm_and_trace,
    pair_cosines,
)
from pipeline.stats.intervals import bootstrap_mean

DIMENSIONS, DRAWS, SAMPLES = 40, 200, 4
# Covariance of one sample: a half of the dimensions has variance 2, the others 6.
VARIANCES_D = np.repeat([2.0, 6.0], DIMENSIONS // 2)
TRACE = 160.0
SIGNAL_D = np.full(DIMENSIONS, 0.5)  # |G|^2 = 10, so that B_simple = 16 samples
SCALE = 16.0


def gradients(seed: int, signal_D: np.ndarray = SIGNAL_D, draws: int = DRAWS) -> np.ndarray:
    """gradients_ND, each the mean of SAMPLES Gaussian samples of known mean and covariance."""
    noise_ND = np.random.default_rng(seed).normal(size=(draws, DIMENSIONS))
    return signal_D + noise_ND * np.sqrt(VARIANCES_D / SAMPLES)


def gram(gradients_ND: np.ndarray) -> np.ndarray:
    return gradients_ND @ gradients_ND.T


def test_two_batch_sizes_give_norm_and_trace_by_hand():
    # |g|^2 is 10 + 160 / 4 = 50 with 4 samples and 10 + 160 / 16 = 20 with 16.
    assert norm_and_trace(50.0, 20.0, 4, 16) == pytest.approx((10.0, 160.0))


def test_norm_and_trace_of_three_gradients_by_hand():
    # (1, 1), (1, -1), (1, 0) of two samples each: products off the diagonal 0, 1, 1; norms 2, 2, 1.
    found = gradient_noise(gram(np.array([[1.0, 1.0], [1.0, -1.0], [1.0, 0.0]])), samples=2)
    assert found.squared_norm.mean == pytest.approx(2 / 3)
    # The variance of a sample is 2 x that of a gradient: 2 * (5 / 3 - 2 / 3).
    assert found.trace == pytest.approx(2.0) and found.noise_scale.mean == pytest.approx(3.0)


def test_the_estimates_are_unbiased_and_their_intervals_hold():
    found = [gradient_noise(gram(gradients(seed, draws=30)), SAMPLES) for seed in range(200)]
    norms = bootstrap_mean([x.squared_norm.mean for x in found])
    traces = bootstrap_mean([x.trace for x in found])
    assert norms.low < 10.0 < norms.high and norms.high - norms.low < 0.6
    assert traces.low < TRACE < traces.high and traces.high - traces.low < 4.0
    covered = sum(x.squared_norm.low < 10.0 < x.squared_norm.high for x in found)
    covered_scale = sum(x.noise_scale.low < SCALE < x.noise_scale.high for x in found)
    assert 0.88 <= covered / 200 <= 0.99 and 0.88 <= covered_scale / 200 <= 0.99


@pytest.mark.parametrize("together", [1, 4, 10])
def test_the_cosine_of_two_batches_is_what_the_noise_scale_says(together):
    gram_NN = gram(gradients(3))
    size = together * SAMPLES
    expected = gradient_noise(gram_NN, SAMPLES).expected_cosine(size)
    assert expected == pytest.approx(size / (size + SCALE), abs=0.05)
    cosines = pair_cosines(gram_NN, together)
    batches = DRAWS // together
    assert len(cosines) == batches * (batches - 1) // 2
    assert cosines.mean() == pytest.approx(expected, abs=0.05)


def test_the_order_of_the_gradients_changes_no_estimate():
    one, order = gradients(5), np.random.default_rng(0).permutation(DRAWS)
    found, again = (gradient_noise(gram(x_ND), SAMPLES) for x_ND in (one, one[order]))
    for name in ("squared_norm", "noise_scale"):
        first, second = vars(getattr(found, name)), vars(getattr(again, name))
        assert first == pytest.approx(second)
    assert np.sort(pair_cosines(gram(one), 1)) == pytest.approx(
        np.sort(pair_cosines(gram(one[order]), 1))
    )


def test_two_equal_batches_have_the_cosine_1():
    half = gradients(6, draws=5)
    assert pair_cosines(gram(np.concatenate([half, half])), 5) == pytest.approx([1.0])


def test_batches_are_means_of_neighbours_and_a_rest_is_left_out():
    x_ND = np.array([[1.0, 0.0], [1.0, 2.0], [0.0, 3.0], [4.0, 0.0], [9.0, 9.0]])
    # Means (1, 1) and (2, 1.5): 3.5 / sqrt(2 * 6.25); the fifth is alone.
    assert pair_cosines(gram(x_ND), 2) == pytest.approx([3.5 / math.sqrt(12.5)])


def test_gradients_without_a_signal_have_no_bounded_noise_scale():
    silent_D = np.zeros(DIMENSIONS)
    found = [gradient_noise(gram(gradients(s, silent_D, draws=40)), SAMPLES) for s in range(20)]
    assert sum(x.noise_scale.high == math.inf for x in found) >= 17
    assert any(x.noise_scale.mean == math.inf for x in found)
    assert {x.expected_cosine(100) for x in found if x.noise_scale.mean == math.inf} == {0.0}


def test_the_cosine_with_another_gradient_is_freed_of_the_noise_of_both():
    other_D = np.zeros(DIMENSIONS)
    other_D[: DIMENSIONS // 2] = 0.5  # half of the signal: cosine sqrt(1 / 2)
    found = []
    for seed in range(40):
        one, other = gradients(seed, draws=40), gradients(100 + seed, other_D, draws=40)
        found.append(expected_cosine_with(gram(one), one @ other.T, gram(other)))
    covered = sum(x.low < math.sqrt(0.5) < x.high for x in found)
    assert 34 <= covered <= 40
    assert np.mean([x.mean for x in found]) == pytest.approx(math.sqrt(0.5), abs=0.03)


def test_the_cosine_of_a_batch_with_another_gradient_by_hand():
    one, other = gradients(7, draws=6), gradients(8, draws=5)
    found = cosines_with(gram(one), one @ other.T, gram(other), together=2)
    mean_D = other.mean(axis=0)
    batches = one.reshape(3, 2, DIMENSIONS).mean(axis=1)
    by_hand = batches @ mean_D / np.linalg.norm(batches, axis=1) / np.linalg.norm(mean_D)
    assert found == pytest.approx(by_hand)


def test_a_direction_that_noise_hides_has_no_cosine():
    alternating = np.array([[1.0], [-1.0], [1.0], [-1.0]])  # products off the diagonal: -1/3
    known = gram(np.ones((3, 1)))
    assert math.isnan(expected_cosine_with(gram(alternating), np.ones((4, 3)), known).mean)


@pytest.mark.filterwarnings("error")
def test_the_cosine_with_a_gradient_of_0_is_0():
    x_ND = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]])
    cosines = pair_cosines(gram(x_ND), 1)
    assert cosines == pytest.approx([0.0, 0.0, math.sqrt(0.5)])
    with_others = cosines_with(gram(x_ND), x_ND @ x_ND[1:].T, gram(x_ND[1:]), 1)
    assert with_others[:2] == pytest.approx([0.0, 2 / math.sqrt(5)])


def test_the_mean_cosine_of_pairs_has_an_interval_from_three_batches_on():
    gram_NN = gram(gradients(9, draws=6))
    found = mean_pair_cosine(gram_NN, 2)
    assert found.mean == pytest.approx(pair_cosines(gram_NN, 2).mean())
    assert found.low < found.mean < found.high
    assert math.isnan(mean_pair_cosine(gram_NN, 3).low)


def test_the_jackknife_of_a_mean_has_its_standard_error():
    values = np.array([1.0, 2.0, 4.0, 9.0])
    found = jackknife(lambda kept: float(values[kept].mean()), 4)
    error = values.std(ddof=1) / 2
    assert (found.low, found.high) == pytest.approx((4 - 1.959964 * error, 4 + 1.959964 * error))


def test_two_gradients_are_refused():
    with pytest.raises(ValueError, match="2 gradients give no interval; give at least 3"):
        gradient_noise(np.eye(2), 1)


def test_a_cosine_and_its_interval_lie_between_minus_one_and_one():
    rng = np.random.default_rng(0)
    for _ in range(50):
        g_NK, h_MK = 0.2 + rng.normal(size=(4, 6)), rng.normal(size=(4, 6)) - 0.2
        pair = mean_pair_cosine(g_NK @ g_NK.T, 1)
        cross = expected_cosine_with(g_NK @ g_NK.T, g_NK @ h_MK.T, h_MK @ h_MK.T)
        for found in (pair, cross):
            bounds = [x for x in (found.low, found.mean, found.high) if not np.isnan(x)]
            assert bounds == sorted(bounds) and all(-1 <= x <= 1 for x in bounds)
