"""Draw what a training run learned."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure


def learning_curve(log_history: Sequence[dict[str, Any]], path: str | Path) -> None:
    """A plot of rewards and accuracies against the step, from the log of a Trainer.

    Training figures are a thin raw line under a running mean; evaluations are few and get dots.
    """
    curves = reward_curves(log_history)
    if not curves:
        seen = sorted({key for entry in log_history for key in entry})
        raise ValueError(f"no reward and no accuracy in the log, it has: {', '.join(seen)}")
    figure = Figure(figsize=(8, 3.8), layout="constrained")
    axes = figure.subplots()
    for i, (key, (steps, values)) in enumerate(curves.items()):
        _draw(axes, key, steps, values, COLOURS[i % len(COLOURS)])
    axes.set_xlabel("step")
    axes.grid(axis="y", color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper left", ncols=4, frameon=False, fontsize=9)
    figure.savefig(path, dpi=150)


# Okabe and Ito's palette, told apart by colour-blind readers too.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000"]
_CURVE = re.compile(r"(eval_)?(reward|rewards?/[^/]+(/mean)?|.*accuracy)")


def _draw(axes: Axes, key: str, steps: list[int], values: list[float], colour: str) -> None:
    label = re.sub(r"^eval_", "eval ", key).replace("/mean", "").replace("rewards/", "reward/")
    if key.startswith("eval_"):
        axes.plot(steps, values, "o--", color=colour, label=label, markersize=4, linewidth=1)
        return
    axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
    axes.plot(steps, running_mean(values), color=colour, label=label, linewidth=1.8)


def reward_curves(
    log_history: Sequence[dict[str, Any]],
) -> dict[str, tuple[list[int], list[float]]]:
    """{name: (steps, values)} of what is drawn."""
    curves: dict[str, tuple[list[int], list[float]]] = {}
    for entry in log_history:
        for key in filter(_CURVE.fullmatch, entry):
            if not math.isfinite(entry[key]):
                continue  # a reward that did not apply to any completion of the step
            steps, values = curves.setdefault(key, ([], []))
            steps.append(entry["step"])
            values.append(entry[key])
    # Where one part alone is paid, the sum is a second line in the same place.
    parts = [curve for key, curve in curves.items() if key != "reward"]
    if curves.get("reward") in parts:
        del curves["reward"]
    return curves


def running_mean(values: Sequence[float]) -> np.ndarray:
    """Mean of the last few values, fewer at the start: a twentieth of the curve."""
    window = max(1, len(values) // 20)
    total = np.cumsum([0.0, *values])
    end = np.arange(1, len(values) + 1)
    start = np.maximum(end - window, 0)
    return (total[end] - total[start]) / (end - start)
