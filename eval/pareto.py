"""Compare search strategies by accuracy and tokens spent (Pareto front) on the same problems.

python -m eval.pareto --folder runs/nano/search --output docs/search.png

`folder` holds one folder of eval.run per strategy and setting, all of one suite. Every run is
paired with the cheapest run of the reference strategy that spent at least 95% of its tokens, so
that a gain is one at about equal or lower cost; where none spent as many, with the most expensive
one. The name of a run, as in `--reference consensus@64`, pairs every run with that one. Prints a
table, and plots accuracy against tokens and tokens against the level of the problem.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter
from transformers.hf_argparser import HfArg

from eval.report_page.curves import COLOURS, add_legend, style_axes
from eval.row_types import Metrics, Record
from eval.run_folder import runs_below
from eval.tables import Table, format_paired_gain, markdown_table
from pipeline.cli import CommandParser
from pipeline.config import Required, check_types, require
from pipeline.runtime import one_line_errors, write_text

TOKEN_TOLERANCE = 0.95  # a reference run with this share of the tokens counts as equally costly


@dataclass(kw_only=True)
class ParetoArguments:
    """Runs to compare and the reference of the comparison."""

    folder: Required = HfArg(default="", help="folder with the folders of eval.run in it")
    reference: str = HfArg(
        default="consensus",
        help="strategy, or name of a run, that others are compared with",
    )
    output: Required = HfArg(default="", help="PNG file; the table goes beside it as Markdown")

    def __post_init__(self) -> None:
        check_types(self)
        require(
            Path(self.output).suffix != ".md",
            f"output={self.output!r} is the plot, and the table beside it ends in .md; give a name "
            "that ends in .png",
        )


@dataclass(frozen=True, kw_only=True)
class Point:
    """One run: its tokens, and its outcomes in the order of the questions."""

    name: str
    strategy: str
    accuracy: float
    ci95: tuple[float, float]
    tokens: float  # mean completion tokens per question
    correct_Q: tuple[bool, ...]
    questions: tuple[str, ...]
    tokens_by_level: dict[str, float]


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Read all runs, print and write the table, save the plot."""
    (args,) = CommandParser(ParetoArguments).parse_args_and_config(argv)
    points = read_points(Path(args.folder))
    require(
        any(is_reference(point, args.reference) for point in points),
        f"reference={args.reference!r} is no run in {args.folder}; choose one of "
        + ", ".join(point.name for point in points),
    )
    text = markdown_table(pareto_table(points, args.reference))
    output = Path(args.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    plot_pareto(points).savefig(output, dpi=150)
    write_text(output.with_suffix(".md"), text + "\n")
    print(text)
    print("->", output)


def read_points(folder: Path) -> list[Point]:
    """The runs below a folder, cheapest first.

    Raises:
        FileNotFoundError: no run.
        ValueError: runs of different questions.
    """
    points = [_point(*run) for run in runs_below(folder)]
    if len({point.questions for point in points}) > 1:
        raise ValueError(
            f"the runs in {folder} have different questions: use one folder per suite and limit"
        )
    return sorted(points, key=lambda point: point.tokens)


def is_reference(point: Point, reference: str) -> bool:
    """Whether `reference` is the strategy or the name of the run."""
    return reference in (point.strategy, point.name)


def reference_run(point: Point, points: Sequence[Point], reference: str) -> Point | None:
    """The cheapest run of the reference with at least TOKEN_TOLERANCE times the point's tokens.

    If none has as many, the reference run with the most tokens; None without another one.
    """
    others = [p for p in points if is_reference(p, reference) and p is not point]
    enough = [p for p in others if p.tokens >= TOKEN_TOLERANCE * point.tokens]
    if enough:
        return min(enough, key=lambda p: p.tokens)
    return max(others, key=lambda p: p.tokens, default=None)


def pareto_table(points: Sequence[Point], reference: str) -> Table:
    """Accuracy, tokens, and the paired gain over the reference run at equal tokens."""
    header = ["strategy", "tokens", "accuracy [95%]", "gain over the reference run [95%], p"]
    table = [[*header, "reference run, its tokens"]]
    for point in points:
        other = None if is_reference(point, reference) else reference_run(point, points, reference)
        low, high = point.ci95
        accuracy = f"{point.accuracy:.1%} [{low:.1%}, {high:.1%}]"
        gain, compared = "-", "-"
        if other is not None:
            gain = format_paired_gain(other.correct_Q, point.correct_Q)
            compared = f"{other.name}, {other.tokens:.0f}"
        table.append([point.name, f"{point.tokens:.0f}", accuracy, gain, compared])
    return table


def plot_pareto(points: Sequence[Point]) -> Figure:
    """Accuracy against tokens, one line per strategy.

    If the problems have several levels, a second plot has the tokens by level of each strategy's
    most expensive run.
    """
    levels = {level for point in points for level in point.tokens_by_level}
    several, longest = len(levels) > 1, max(map(len, levels), default=0)
    rotation = 90 if longest > 12 else 30 if sum(map(len, levels)) > 30 else 0
    height = 4.2 + 0.06 * longest * (rotation == 90)  # inches; letters of 8 points below the axis
    figure = Figure(figsize=(11 if several else 8, height), layout="constrained")
    left, *others = figure.subplots(1, 2, width_ratios=(3, 2)) if several else [figure.subplots()]
    for i, strategy in enumerate(sorted({point.strategy for point in points})):
        own = [point for point in points if point.strategy == strategy]
        style: dict[str, Any] = {
            "color": COLOURS[i % len(COLOURS)],
            "marker": "os^D"[i // len(COLOURS) % 4],
        }
        tokens, accuracy = zip(*((p.tokens, 100 * p.accuracy) for p in own), strict=True)
        left.plot(tokens, accuracy, label=strategy, **style)
        for right in others:
            by_level = own[-1].tokens_by_level
            right.plot(list(by_level), list(by_level.values()), **style)
    left.set(xscale="log", xlabel="tokens per question", ylabel="accuracy in %")
    _label_with_numbers(left.xaxis)
    for right in others:
        right.set(yscale="log", xlabel="level", ylabel="tokens per question, most expensive run")
        _label_with_numbers(right.yaxis)
        right.tick_params(axis="x", rotation=rotation, labelsize=8)
    for axes in (left, *others):
        style_axes(axes)
    add_legend(figure)
    return figure


def _label_with_numbers(axis: Axis) -> None:
    """Label a logarithmic axis 40 and 200 in place of 4 x 10^1 and 2 x 10^2."""
    axis.set_major_formatter(LogFormatter())
    axis.set_minor_formatter(LogFormatter())


def _point(metrics: Metrics, records: Sequence[Record]) -> Point:
    options = metrics["options"]
    by_level: dict[str, list[int]] = {}
    for row in records:
        usage = row["usage"]
        spent = usage["reasoning_tokens"] + usage["visible_tokens"]
        by_level.setdefault(row["level"], []).append(spent)
    return Point(
        name=run_name(metrics["strategy"], options),
        strategy=metrics["strategy"],
        accuracy=metrics["accuracy"],
        ci95=(metrics["ci95"][0], metrics["ci95"][1]),
        tokens=metrics["completion_tokens_per_question"]["mean"],
        correct_Q=tuple(row["correct"] for row in records),
        questions=tuple(row["question"] for row in records),
        tokens_by_level={level: sum(t) / len(t) for level, t in sorted(by_level.items())},
    )


def run_name(strategy: str, options: Mapping[str, object]) -> str:
    """Strategy with the option that sets its budget: simulations, width, retries or samples.

    >>> run_name("mcts", {"n": 1, "simulations": 8}), run_name("consensus", {"n": 4})
    ('mcts@8', 'consensus@4')
    """
    if strategy == "mcts":
        return f"mcts@{options['simulations']}"
    if strategy == "beam":
        return f"beam@{options['width']}x{options['branches']}"
    if strategy in ("revise", "calculator", "random_cut"):
        return f"{strategy}@{options['retries']}"
    return strategy if options["n"] == 1 else f"{strategy}@{options['n']}"


if __name__ == "__main__":
    main()
