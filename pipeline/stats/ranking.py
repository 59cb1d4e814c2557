"""How good a critic is, over all states and, above all, within one question. Pure functions.

N states, each with a value, an outcome (1 right, 0 wrong, or a share in between) and its question.
Pooled figures mislead: a critic that only knows which questions are hard has a high AUROC, and no
idea which of two answers to the same question is right.
"""

from collections.abc import Sequence

import torch


def quality(
    values_N: torch.Tensor, right_N: torch.Tensor, question_N: torch.Tensor
) -> dict[str, float]:
    """All figures by name; nan where they are not defined."""
    ranking, questions = within_question(values_N, right_N, question_N)
    return {
        "n": len(values_N),
        "right": right_N.mean().item(),
        "explained_variance": explained(values_N, right_N),
        "brier": (values_N - right_N).square().mean().item(),
        "calibration_error": calibration_error(values_N, right_N),
        "auroc": auroc(values_N, right_N),
        "within_question": ranking,
        "questions_compared": questions,
        "best_of_n": best_of(values_N, right_N, question_N),
    }


def explained(values_N: torch.Tensor, right_N: torch.Tensor) -> float:
    """1 - Var[R - V] / Var[R]: 1 for a perfect critic, 0 for a constant one."""
    variance = right_N.var(correction=0)
    if variance == 0:
        return float("nan")
    return 1 - ((right_N - values_N).var(correction=0) / variance).item()


def auroc(values_N: torch.Tensor, right_N: torch.Tensor) -> float:
    """How often a right one has the higher value than a wrong one; ties count half.

    >>> auroc(torch.tensor([0.9, 0.5, 0.5]), torch.tensor([1.0, 1.0, 0.0]))
    0.75
    """
    right, wrong = values_N[right_N > 0.5], values_N[right_N <= 0.5]
    if not len(right) or not len(wrong):
        return float("nan")
    ordered = wrong.sort().values
    below = torch.searchsorted(ordered, right)
    upto = torch.searchsorted(ordered, right, right=True)
    return ((below + upto).double().mean() / (2 * len(wrong))).item()


def within_question(
    values_N: torch.Tensor, right_N: torch.Tensor, question_N: torch.Tensor
) -> tuple[float, int]:
    """(mean AUROC over the questions that have right and wrong ones, how many these are): how often
    the right one of two completions of the same question has the higher value. 0.5 is chance."""
    scores = [auroc(v, r) for v, r in _by_question(question_N, values_N, right_N)]
    scores = [score for score in scores if score == score]
    return (sum(scores) / len(scores) if scores else float("nan")), len(scores)


def best_of(values_N: torch.Tensor, right_N: torch.Tensor, question_N: torch.Tensor) -> float:
    """Share of the questions whose completion of the highest value is right; ties share."""
    found = [r[v == v.max()].mean().item() for v, r in _by_question(question_N, values_N, right_N)]
    return sum(found) / len(found)


def calibration_error(values_N: torch.Tensor, right_N: torch.Tensor, bins: int = 10) -> float:
    """Mean distance of a value, clipped to [0, 1], from the share of right ones in its tenth
    (expected calibration error, arXiv:1706.04599, equation 3).

    >>> calibration_error(torch.tensor([0.75, 0.75]), torch.tensor([1.0, 0.0]))
    0.25
    """
    rows = calibration(values_N, right_N, bins)
    return sum(row["n"] * abs(row["value"] - row["right"]) for row in rows) / len(values_N)


def calibration(
    values_N: torch.Tensor, right_N: torch.Tensor, bins: int = 10
) -> list[dict[str, float]]:
    """Mean value and share of right ones in each bin of equal width that is not empty."""
    clipped_N = values_N.clamp(0, 1)
    bin_N = (clipped_N * bins).long().clamp_max(bins - 1)
    return [
        {
            "n": int((bin_N == b).sum()),
            "value": clipped_N[bin_N == b].mean().item(),
            "right": right_N[bin_N == b].mean().item(),
        }
        for b in bin_N.unique().tolist()
    ]


def _by_question(
    question_N: torch.Tensor, *columns_N: torch.Tensor
) -> Sequence[tuple[torch.Tensor, ...]]:
    order = question_N.argsort(stable=True)
    counts = question_N[order].unique_consecutive(return_counts=True)[1].tolist()
    return list(zip(*(column[order].split(counts) for column in columns_N), strict=True))
