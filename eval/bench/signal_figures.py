"""Figures of `python -m eval.bench signal` and their tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, inf, isnan, sqrt

import numpy as np
import torch

from eval.tables import markdown_table
from pipeline.stats.gradient_noise import (
    GradientNoise,
    cosines_with,
    expected_cosine_with,
    gradient_noise,
    mean_pair_cosine,
)
from pipeline.stats.intervals import Estimate


@dataclass(frozen=True)
class BatchFigures:
    """Gradients of batches of one size."""

    questions: int
    samples: int
    batches: int  # disjoint ones in the samples
    cosine: Estimate  # of two batches, mean over pairs
    step_share: float  # B / (B + B_simple)
    norm: float  # root of the expected squared norm
    cosine_with_sft: float | None  # mean, with the mean SFT gradient


@dataclass(frozen=True)
class EstimatorFigures:
    """Gradients of one advantage estimator."""

    rewards: Mapping[str, float]
    options: Mapping[str, object]
    mean_reward: float
    zero_variance: float  # share of questions whose completions have equal rewards
    noise: GradientNoise
    cosine_with_sft: Estimate | None  # of the two expected gradients
    batches: Sequence[BatchFigures]


@dataclass(frozen=True)
class SignalFigures:
    """Figures of the samples and of every estimator's gradients."""

    completions: int
    mean_length: float
    truncated: float
    entropy: float  # nats per token
    sampling_seconds: float
    gradient_seconds: float
    sft_noise: GradientNoise | None  # a sample is a worked solution
    estimators: Mapping[str, EstimatorFigures]


def batch_figures(
    gradients_NK: torch.Tensor,
    sft_MK: torch.Tensor | None,
    noise: GradientNoise,
    *,
    sizes: Sequence[int],
    group: int,
) -> tuple[Estimate | None, list[BatchFigures]]:
    """Return (cosine of the expected gradients with SFT's, figures of each batch size).

    Args:
        gradients_NK: each of the first of `sizes`, in questions of `group` samples.
    """
    gram_NN, direction, found = gram(gradients_NK, gradients_NK), None, []
    if sft_MK is not None:
        cross_NM, sft_MM = gram(gradients_NK, sft_MK), gram(sft_MK, sft_MK)
        direction = expected_cosine_with(gram_NN, cross_NM, sft_MM)
    for size in sizes:
        together = size // sizes[0]
        square = noise.squared_norm.mean + noise.trace / (size * group)
        cosine_with_sft = None
        if sft_MK is not None:
            cosine_with_sft = float(cosines_with(gram_NN, cross_NM, sft_MM, together).mean())
        found.append(
            BatchFigures(
                questions=size,
                samples=size * group,
                batches=len(gram_NN) // together,
                cosine=mean_pair_cosine(gram_NN, together),
                step_share=noise.expected_cosine(size * group),
                norm=sqrt(max(square, 0.0)),
                cosine_with_sft=cosine_with_sft,
            )
        )
    return direction, found


def noise_of(gradients_NK: torch.Tensor, samples: int) -> GradientNoise:
    """Return the noise of gradients of `samples` samples each."""
    return gradient_noise(gram(gradients_NK, gradients_NK), samples)


def gram(one_NK: torch.Tensor, other_MK: torch.Tensor) -> np.ndarray:
    """Return the inner products as float64 (N, M)."""
    return (one_NK.double() @ other_MK.double().T).numpy()


def noise_table(figures: SignalFigures) -> str:
    """Return Markdown: the reward, noise scale, norm and direction of each expected gradient."""
    titles = ["reward", "zero variance", "noise scale, samples", "norm of G", "cosine with SFT"]
    rows = [["estimator", *titles]]
    for name, found in figures.estimators.items():
        cells = [f"{found.mean_reward:.3f}", f"{found.zero_variance:.0%}"]
        direction = found.cosine_with_sft
        ending = "-"
        if direction is not None and not isnan(direction.low):
            ending = _interval(direction, ".2f")
        rows.append([name, *cells, *_noise_cells(found.noise), ending])
    if figures.sft_noise is not None:
        rows.append(["worked solutions (SFT)", "", "", *_noise_cells(figures.sft_noise), ""])
    return markdown_table(rows)


def batch_table(figures: SignalFigures) -> str:
    """Return Markdown: cosines, step and norm of each estimator at each batch size."""
    titles = ["samples", "batches", "cosine of two", "step", "norm", "cosine with SFT"]
    rows = [["estimator", *titles]]
    for name, found in figures.estimators.items():
        for batch in found.batches:
            with_sft = batch.cosine_with_sft
            rows.append(
                [
                    name,
                    f"{batch.samples:,}",
                    str(batch.batches),
                    _interval(batch.cosine, ".3f"),
                    f"{batch.step_share:.3f}",
                    f"{batch.norm:.3g}",
                    "-" if with_sft is None else f"{with_sft:.3f}",
                ]
            )
    return markdown_table(rows)


def suggested_rollout(figures: SignalFigures, group: int) -> str:
    """Return one line: the estimator of least noise and the rollout where signal equals noise."""
    scales = {name: found.noise.noise_scale.mean for name, found in figures.estimators.items()}
    best = min(scales, key=lambda name: scales[name])
    if scales[best] == inf:
        return "no estimator has a signal in these samples; give more questions"
    return (
        f"least noise: {best}; signal and noise are equal at a rollout of "
        f"{ceil(scales[best] / group):,} questions x {group} completions: the gradients of two "
        "such rollouts have the cosine 0.5, and the best step is half of that without noise"
    )


def _noise_cells(noise: GradientNoise) -> list[str]:
    norm = sqrt(max(noise.squared_norm.mean, 0.0))
    return [_interval(noise.noise_scale, ",.0f"), f"{norm:.3g}"]


def _interval(found: Estimate, form: str) -> str:
    if isnan(found.low):
        return f"{found.mean:{form}}"
    return f"{found.mean:{form}} [{found.low:{form}}, {found.high:{form}}]"
