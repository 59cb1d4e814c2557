"""Matplotlib figures of training logs and calibration, and figures as SVG inside a page."""

import base64
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eval.row_types import CalibrationFigures

Curves = dict[str, tuple[list[float], list[float]]]  # name -> steps, values

# Okabe and Ito's palette, distinguishable for colour-blind readers.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000"]
_CURVE = re.compile(r"(eval_)?(reward|rewards?/[^/]+(/mean)?|.*accuracy)")
_VALUE_CURVE = re.compile(
    r"(value|verifier)/auroc_within(_steps)?|value/calibration_error|(value_model/)?explained_variance"
)


def new_plot(figsize: tuple[float, float], **axes: object) -> tuple[Figure, Axes]:
    """A figure of that size in inches with one set of axes; `axes` are properties, as xlabel."""
    figure = Figure(figsize=figsize, layout="constrained")
    plot = figure.subplots()
    plot.set(**axes)
    style_axes(plot)
    return figure, plot


def style_axes(axes: Axes) -> None:
    """Horizontal grid lines that show on light and dark, no frame above and to the right."""
    axes.grid(axis="y", color="0.5", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def add_legend(figure: Figure) -> None:
    """A legend above the axes, in as many columns as the figure has room for."""
    labels = [label for axes in figure.axes for label in axes.get_legend_handles_labels()[1]]
    # Inches: the line of a label and the space around it, then letters of 9 points.
    column = 0.5 + 0.065 * max(map(len, labels), default=0)
    columns = max(1, int(figure.get_figwidth() // max(2, column)))
    figure.legend(loc="outside upper left", ncols=columns, frameon=False, fontsize=9)


def plot_learning_curve(
    log_history: Sequence[Mapping[str, float]], figsize: tuple[float, float] = (8, 3.8)
) -> Figure:
    """Rewards and accuracies against the step, from the log of a Trainer.

    Training metrics have a thin raw line and a running mean; evaluations have markers.

    Raises:
        ValueError: the log has neither rewards nor accuracies.
    """
    curves = reward_curves(log_history)
    if not curves:
        seen = sorted({key for entry in log_history for key in entry})
        raise ValueError(
            f"no reward and no accuracy in the log, it has: {', '.join(seen)}; give the "
            "trainer_state.json of a PPO run"
        )
    return _plot_curves(curves, figsize, "reward and accuracy")


def plot_value_curves(
    log_history: Sequence[Mapping[str, float]], figsize: tuple[float, float]
) -> Figure | None:
    """Ranking within questions, calibration error and explained variance of the values of a PPO
    run against the step; None for a log without them."""
    curves = _curves(log_history, _VALUE_CURVE)
    if not curves:
        return None
    figure = _plot_curves(curves, figsize, "value head and verifier")
    figure.axes[0].set_ylim(-0.05, 1.05)  # explained variance may be far below 0 at first
    return figure


def _plot_curves(curves: Curves, figsize: tuple[float, float], ylabel: str) -> Figure:
    figure, axes = new_plot(figsize, xlabel="step", ylabel=ylabel)
    for i, (name, (steps, values)) in enumerate(curves.items()):
        label = re.sub(r"^eval_", "eval ", name).replace("/mean", "").replace("rewards/", "reward/")
        style: dict[str, Any] = {"color": COLOURS[i % len(COLOURS)]}
        if name.startswith("eval_"):
            axes.plot(steps, values, "o--", label=label, markersize=4, linewidth=1, **style)
        else:
            axes.plot(steps, values, alpha=0.25, linewidth=0.8, **style)
            axes.plot(steps, running_mean(values), label=label, linewidth=1.8, **style)
    add_legend(figure)
    return figure


def plot_calibration(
    calibrations: Mapping[str, CalibrationFigures], figsize: tuple[float, float]
) -> Figure:
    """Reliability diagram: share of right answers against mean value, with Wilson intervals.

    A calibration is the "value" entry of eval.samples' metrics.json.
    """
    figure, axes = new_plot(
        figsize, xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel="mean value", ylabel="share right"
    )
    axes.plot([0, 1], [0, 1], "--", color="0.5", linewidth=1)
    for i, (name, found) in enumerate(calibrations.items()):
        value = [b["confidence"] for b in found["bins"]]
        right = [b["right"] for b in found["bins"]]
        # Rounding may put a bound past the mean by 1e-17, which matplotlib refuses.
        sizes = [[abs(r["mean"] - r[end]) for r in right] for end in ("low", "high")]
        style: dict[str, Any] = {
            "color": COLOURS[i % len(COLOURS)],
            "markersize": 4,
            "elinewidth": 1,
        }
        axes.errorbar(value, [r["mean"] for r in right], sizes, fmt="o-", label=name, **style)
    add_legend(figure)
    return figure


def svg_data_uri(figure: Figure) -> str:
    """The figure as an SVG image inside a data: URI, with text as paths and no background."""
    buffer = io.BytesIO()
    # A fixed salt and no date: the same figure gives the same bytes.
    with matplotlib.rc_context({"svg.hashsalt": "thinkhead"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def read_log_history(path: str | Path) -> list[dict[str, float]]:
    """The rows of a training log: trainer_state.json, log.jsonl, or a folder with one of them.

    Raises:
        ValueError: the file is no such log.
    """
    file = Path(path)
    if file.is_dir():
        names = [n for n in ("trainer_state.json", "log.jsonl") if (file / n).is_file()]
        file = file / (names or ["trainer_state.json"])[0]
    text = file.read_text(encoding="utf-8")
    try:
        if file.suffix == ".jsonl":
            rows = [json.loads(line) for line in text.split("\n") if line]
        else:
            rows = json.loads(text)["log_history"]
    except (json.JSONDecodeError, KeyError, TypeError):
        rows = None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(
            f"log_history={path} is no training log; give trainer_state.json or log.jsonl"
        )
    return rows


def reward_curves(log_history: Sequence[Mapping[str, float]]) -> Curves:
    """{name: (steps, values)} of the rewards and accuracies in a log; values that are not finite
    are left out."""
    curves = _curves(log_history, _CURVE)
    # With a single reward function the sum equals it and would cover its line.
    parts = [curve for key, curve in curves.items() if key != "reward"]
    if curves.get("reward") in parts:
        del curves["reward"]
    return curves


def _curves(log_history: Sequence[Mapping[str, float]], names: re.Pattern[str]) -> Curves:
    curves: Curves = {}
    for entry in log_history:
        for key in filter(names.fullmatch, entry):
            # None in a JSON log: not a number, as a reward that applied to no completion
            if entry[key] is None or not math.isfinite(entry[key]):
                continue
            steps, values = curves.setdefault(key, ([], []))
            steps.append(entry["step"])
            values.append(entry[key])
    return curves


def running_mean(values: Sequence[float]) -> np.ndarray:
    """Mean of the last values at every index; the window is 1/20 of the curve, shorter at first."""
    window = max(1, len(values) // 20)
    total = np.cumsum([0.0, *values])
    end = np.arange(1, len(values) + 1)
    start = np.maximum(end - window, 0)
    return (total[end] - total[start]) / (end - start)
