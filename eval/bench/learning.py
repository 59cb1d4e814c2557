"""What trainers have learned from equally many samples: a table and a plot."""

import statistics
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from eval.report_page.curves import COLOURS, running_mean

# seed -> contender -> samples, reward and cpu_s of every update
Runs = dict[int, dict[str, dict[str, list[float]]]]


def table(runs: Runs) -> str:
    """A row a contender: mean reward of the first and the last fifth of its updates and of all of
    them, over the seeds; ours less it over all updates, seed by seed."""
    rows = [
        "| | first fifth | last fifth | all updates | ours less it, by seed | processor s |",
        "| :-- | --: | --: | --: | --: | --: |",
    ]
    for name in next(iter(runs.values())):
        curves = [run[name]["reward"] for run in runs.values()]
        fifths = [max(1, len(curve) // 5) for curve in curves]
        parts = (
            [curve[:n] for curve, n in zip(curves, fifths, strict=True)],
            [curve[-n:] for curve, n in zip(curves, fifths, strict=True)],
            curves,
        )
        cells = [f"{statistics.mean(map(statistics.mean, part)):.3f}" for part in parts]
        less = [
            f"{statistics.mean(run['ours']['reward']) - statistics.mean(run[name]['reward']):+.3f}"
            for run in runs.values()
            if "ours" in run and name != "ours"
        ]
        spent = statistics.mean(sum(run[name]["cpu_s"]) for run in runs.values())
        rows.append(f"| {name} | {' | '.join(cells)} | {', '.join(less)} | {spent:.0f} |")
    return "\n".join(rows)


def draw(runs: Runs, path: Path, reward: str) -> None:
    """Reward against samples seen: a thin line a seed, a thick one for their mean."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for i, name in enumerate(next(iter(runs.values()))):
        colour = COLOURS[i % len(COLOURS)]
        samples = np.cumsum(next(iter(runs.values()))[name]["samples"])
        curves = [running_mean(run[name]["reward"]) for run in runs.values()]
        for curve in curves:
            axes.plot(samples, curve, color=colour, alpha=0.3, linewidth=0.8)
        axes.plot(samples, np.mean(curves, axis=0), color=colour, label=name, linewidth=2)
    axes.set(xlabel="samples seen", ylabel=reward)
    axes.grid(axis="y", color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper left", ncols=4, frameon=False, fontsize=9)
    figure.savefig(path, dpi=150)
