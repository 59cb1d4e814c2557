"""Accuracy against tokens spent, for many strategies on the same problems.

python -m eval.pareto --folder runs/nano/search --output docs/search.png

`folder` holds a folder of eval.run for each strategy and setting, all of one suite. Every run is
compared, question by question, with the cheapest run of the reference strategy that spent at least
as many tokens: what is gained there is gained at equal cost or less. A run's name, as in
`--reference consensus@64`, compares all with that one. Prints a table, draws a plot, and beside it
one of the tokens against the level of the problem.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from transformers.hf_argparser import HfArg

from eval.report_page.curves import COLOURS
from eval.run_folder import read_run
from pipeline.cli import CommandParser
from pipeline.config import check_types, require
from pipeline.runtime import one_line_errors
from pipeline.stats.paired import mcnemar, paired_bootstrap

NEARLY = 0.95  # spending so much of another run's tokens counts as spending as many


@dataclass(kw_only=True)
class ParetoArguments:
    """Which runs, and what they are compared with."""

    folder: str = HfArg(default="", help="folder with the folders of eval.run in it")
    reference: str = HfArg(
        default="consensus",
        help="strategy, or a run's name, that others are compared with",
    )
    output: str = HfArg(default="", help="PNG file; the table goes beside it as Markdown")

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("folder", "output"):
            require(bool(getattr(self, name)), f"--{name} is missing: pass --{name}")


@dataclass(frozen=True, kw_only=True)
class Point:
    """One run: what it cost and what it got right, in the order of the questions."""

    name: str
    strategy: str
    accuracy: float
    ci95: tuple[float, float]
    tokens: float  # completion tokens a question
    correct_Q: tuple[bool, ...]
    questions: tuple[str, ...]
    tokens_by_level: dict[str, float]


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Read all runs, print the table, draw the plot."""
    (args,) = CommandParser(ParetoArguments).parse_args_and_config(argv)
    points = read_points(Path(args.folder))
    require(
        any(is_reference(point, args.reference) for point in points),
        f"reference={args.reference!r} is no run in {args.folder}; there are "
        + ", ".join(point.name for point in points),
    )
    text = table(points, args.reference)
    output = Path(args.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.with_suffix(".md").write_text(text + "\n", encoding="utf-8")
    draw(points, output)
    print(text)
    print("->", output)


def read_points(folder: Path) -> list[Point]:
    """The runs below a folder, cheapest first; ValueError unless all asked the same questions."""
    points = [_point(*read_run(path.parent)) for path in sorted(folder.rglob("metrics.json"))]
    if not points:
        raise FileNotFoundError(f"{folder} holds no metrics.json: run python -m eval.run first")
    if len({point.questions for point in points}) > 1:
        raise ValueError(
            f"the runs in {folder} asked different questions: give each suite, and each limit, a "
            "folder of its own"
        )
    return sorted(points, key=lambda point: point.tokens)


def is_reference(point: Point, reference: str) -> bool:
    return reference in (point.strategy, point.name)


def rival(point: Point, points: Sequence[Point], reference: str) -> Point | None:
    """The cheapest run of the reference that spent (nearly) as many tokens; where none
    did, the dearest one."""
    others = [p for p in points if is_reference(p, reference) and p is not point]
    enough = [p for p in others if p.tokens >= NEARLY * point.tokens]
    if enough:
        return min(enough, key=lambda p: p.tokens)
    return max(others, key=lambda p: p.tokens, default=None)


def table(points: Sequence[Point], reference: str) -> str:
    """Markdown: accuracy, tokens, and the paired difference to the reference at equal tokens."""
    rows = [
        "| strategy | tokens | accuracy [95%] | less its rival [95%], p | rival, its tokens |",
        "| :-- | --: | --: | --: | :-- |",
    ]
    for point in points:
        other = None if is_reference(point, reference) else rival(point, points, reference)
        low, high = point.ci95
        cells = [
            point.name,
            f"{point.tokens:.0f}",
            f"{point.accuracy:.1%} [{low:.1%}, {high:.1%}]",
            "-" if other is None else difference(other, point),
            "-" if other is None else f"{other.name}, {other.tokens:.0f}",
        ]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def difference(before: Point, after: Point) -> str:
    """Points gained on the same questions, with the bootstrap interval and McNemar's p."""
    gain = paired_bootstrap(before.correct_Q, after.correct_Q)
    p = mcnemar(before.correct_Q, after.correct_Q)
    return f"{100 * gain.mean:+.1f} [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}], " + (
        "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
    )


def draw(points: Sequence[Point], path: Path) -> None:
    """Accuracy against tokens, a line a strategy; where there are several levels, tokens against
    level as well, of the dearest runs."""
    levels = {level for point in points for level in point.tokens_by_level}
    several = len(levels) > 1
    figure = Figure(figsize=(11 if several else 8, 4.2), layout="constrained")
    left, *others = figure.subplots(1, 2, width_ratios=(3, 2)) if several else [figure.subplots()]
    strategies = sorted({point.strategy for point in points})
    for i, strategy in enumerate(strategies):
        own = [point for point in points if point.strategy == strategy]
        colour, marker = COLOURS[i % len(COLOURS)], "os^D"[i // len(COLOURS) % 4]
        left.plot(
            [p.tokens for p in own],
            [100 * p.accuracy for p in own],
            marker=marker,
            color=colour,
            label=strategy,
        )
        for right in others:
            spent = own[-1].tokens_by_level
            right.plot(list(spent), list(spent.values()), marker=marker, color=colour)
    left.set_xscale("log")
    left.set(xlabel="tokens a question", ylabel="accuracy in %")
    for right in others:
        right.set_yscale("log")
        right.set(xlabel="level", ylabel="tokens a question, dearest run")
    for axes in (left, *others):
        axes.grid(axis="y", color="0.9")
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper left", ncols=6, frameon=False, fontsize=9)
    figure.savefig(path, dpi=150)


def _point(metrics: dict[str, Any], records: list[dict[str, Any]]) -> Point:
    options = metrics["options"]
    by_level: dict[str, list[int]] = {}
    for row in records:
        by_level.setdefault(row["level"], []).append(_tokens(row))
    return Point(
        name=name_of(metrics["strategy"], options),
        strategy=metrics["strategy"],
        accuracy=metrics["accuracy"],
        ci95=tuple(metrics["ci95"]),
        tokens=metrics["completion_tokens_per_question"]["mean"],
        correct_Q=tuple(row["correct"] for row in records),
        questions=tuple(row["question"] for row in records),
        tokens_by_level={level: sum(t) / len(t) for level, t in sorted(by_level.items())},
    )


def name_of(strategy: str, options: dict[str, Any]) -> str:
    """How large a strategy was, in the number that makes it so.

    >>> name_of("mcts", {"n": 1, "simulations": 8}), name_of("consensus", {"n": 4})
    ('mcts@8', 'consensus@4')
    """
    if strategy == "mcts":
        return f"mcts@{options['simulations']}"
    if strategy == "beam":
        return f"beam@{options['width']}x{options['branches']}"
    if strategy in ("revise", "calculator", "random_cut"):
        return f"{strategy}@{options['retries']}"
    return strategy if options["n"] == 1 else f"{strategy}@{options['n']}"


def _tokens(row: dict[str, Any]) -> int:
    return row["usage"]["reasoning_tokens"] + row["usage"]["visible_tokens"]


if __name__ == "__main__":
    main()
