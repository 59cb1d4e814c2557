"""Compare evaluated variants: accuracy, tokens, paired differences, one example answer.

python -m eval.compare --runs base=runs/a,sft=runs/b,ppo=runs/c --output report.md \\
    [--baseline base] [--log_history runs/ppo/trainer_state.json]

A run is a folder written by eval.run, or a folder of several of them. Writes Markdown and prints
the same tables.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from transformers.hf_argparser import HfArg

from eval.report_page.curves import plot_learning_curve, read_log_history
from eval.row_types import Metrics, Record
from eval.run_folder import problem_keys, runs_below
from eval.tables import (
    Table,
    format_paired_gain,
    format_percent,
    markdown_table,
    rich_table,
)
from pipeline.cli import CommandParser
from pipeline.config import Required, check_types, require
from pipeline.runtime import one_line_errors, write_text
from pipeline.stats.intervals import Estimate

Run = tuple[Metrics, list[Record]]
Variants = Mapping[str, Mapping[str, Run]]  # variant -> column -> run
CompareBy = Literal["run", "suite"]
COMPARE_BY = (
    "run: by suite and strategy; suite: by suite alone, to compare strategies, where a variant has "
    "one run of each suite"
)


@dataclass(kw_only=True)
class CompareArguments:
    """Evaluations to compare, the baseline, and the file of the report."""

    runs: Required = HfArg(
        default="", help="NAME=DIR of every variant, separated by commas, in order"
    )
    output: Required = HfArg(default="", help="Markdown file to write")
    baseline: str = HfArg(default="", help="compare with this variant instead of the row above")
    pair_by: Literal["question", "id"] = HfArg(
        default="question",
        help="id: pair problems by id and expected answer, where their questions are worded "
        "differently; the files of both have one name",
    )
    compare_by: CompareBy = HfArg(default="run", help=COMPARE_BY)
    log_history: str = HfArg(default="", help="trainer_state.json or log.jsonl of a run, to plot")

    def __post_init__(self) -> None:
        check_types(self)
        parse_folders("runs", self.runs)
        if self.baseline and self.baseline not in self.folders:
            raise ValueError(f"baseline={self.baseline!r} is not one of {', '.join(self.folders)}")
        require(
            not self.log_history or Path(self.output).suffix != ".png",
            f"output={self.output!r} is the report, and the plot beside it ends in .png; give a "
            "name that ends in .md",
        )

    @property
    def folders(self) -> dict[str, Path]:
        """The folder of every variant by its name."""
        return parse_folders("runs", self.runs)


def parse_folders(field: str, text: str) -> dict[str, Path]:
    """{name: folder} of NAME=DIR,NAME=DIR.

    >>> parse_folders("runs", "sft=runs/a, ppo=runs/b")
    {'sft': PosixPath('runs/a'), 'ppo': PosixPath('runs/b')}
    """
    parts = text.split(",")
    if not all(re.fullmatch(r"[^=]+=.+", part) for part in parts):
        raise ValueError(f"{field}={text!r} must read NAME=DIR,NAME=DIR")
    pairs = [part.split("=", maxsplit=1) for part in parts]
    folders = {name.strip(): Path(folder.strip()) for name, folder in pairs}
    if len(folders) < len(parts):
        raise ValueError(f"{field}={text!r} names a variant twice: give each a different name")
    return folders


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Read every run, then write the report; nothing is written if a run cannot be read."""
    (args,) = CommandParser(CompareArguments).parse_args_and_config(argv)
    variants = {name: read_variant(f, args.compare_by) for name, f in args.folders.items()}
    tables = {"Accuracy in % [95% interval] and tokens a question": accuracy_table(variants)}
    if len(variants) > 1:
        above = args.baseline or "the row above"
        tables[f"Points gained over {above} [95% interval]"] = gain_table(
            variants, args.baseline, args.pair_by
        )
    parts = [f"## {title}\n\n{markdown_table(table)}" for title, table in tables.items()]

    name, runs = list(variants.items())[-1]
    column, (_metrics, records) = next(iter(runs.items()))
    parts.append(f"## {name} on {column}, its hidden thought shown\n\n{example_answer(records)}")

    output = Path(args.output)
    if args.log_history:
        figure = plot_learning_curve(read_log_history(args.log_history))
        output.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(output.with_suffix(".png"), dpi=150)
        parts.insert(len(tables), f"## Learning\n\n![Learning curve]({output.stem}.png)")
    write_text(output, "\n\n".join(parts) + "\n")
    for title, table in tables.items():
        Console().print(rich_table(title, table))
    print("->", output)


def read_variant(folder: Path, by: CompareBy = "run") -> dict[str, Run]:
    """Runs in a folder and below it, by suite and strategy, as in "nano consensus@64", or with
    by="suite" by suite alone."""
    runs: dict[str, Run] = {}
    for metrics, records in runs_below(folder):
        samples = metrics["options"]["n"]
        strategy = f" {metrics['strategy']}" + f"@{samples}" * (samples > 1)
        column = metrics["suite"] + (strategy if by == "run" else "")
        if column in runs:
            raise ValueError(f"{folder} holds {column!r} twice: give each run a variant of its own")
        runs[column] = metrics, records
    return runs


def accuracy_table(variants: Variants) -> Table:
    """One row per variant, one column per suite; "-" where a variant was not evaluated."""
    columns = _columns(variants)
    rows = [
        [name, *(_score(runs[c][0]) if c in runs else "-" for c in columns)]
        for name, runs in variants.items()
    ]
    return [["variant", *columns], *rows]


def gain_table(variants: Variants, baseline: str = "", pair_by: str = "question") -> Table:
    """Paired gain of each variant over the baseline, or over the row above it for "".

    With pair_by="id" the same problem may be worded differently in the two runs.
    """
    columns = _columns(variants)
    names = list(variants)
    rows = []
    for i, name in enumerate(names):
        other = baseline or (names[i - 1] if i else name)
        if other == name:
            continue
        runs, before = variants[name], variants[other]
        cells = (_gain(c, other, name, before, runs, pair_by) for c in columns)
        rows.append([f"{other} to {name}", *cells])
    return [["variant", *columns], *rows]


def example_answer(records: Sequence[Record]) -> str:
    """One record in Markdown, with its thought: the right answer of median thought length.

    Without a right answer, a wrong one; answers without a thought come last.
    """
    with_thought = [r for r in records if r["reasoning"]]
    candidates = [r for r in with_thought if r["correct"]] or with_thought or list(records)
    candidates = sorted(candidates, key=lambda r: r["usage"]["reasoning_tokens"])
    chosen = candidates[(len(candidates) - 1) // 2]
    usage = chosen["usage"]
    verdict = "right" if chosen["correct"] else f"wrong, expected {chosen['expected']}"
    return "\n\n".join(
        [
            f"**Question**\n\n{_fenced(chosen['question'])}",
            f"**Thought**, {usage['reasoning_tokens']} tokens, hidden from the user\n\n"
            + _fenced(chosen["reasoning"]),
            f"**Answer**, {usage['visible_tokens']} tokens, {verdict}\n\n"
            + _fenced(chosen["answer"]),
        ]
    )


def _columns(variants: Variants) -> list[str]:
    return list(dict.fromkeys(column for runs in variants.values() for column in runs))


def _score(metrics: Metrics) -> str:
    accuracy = Estimate(metrics["accuracy"], *metrics["ci95"])
    tokens = metrics["completion_tokens_per_question"]["mean"]
    return f"{format_percent(accuracy)} · {tokens:.0f}"


def _gain(
    column: str,
    other: str,
    name: str,
    before: Mapping[str, Run],
    after: Mapping[str, Run],
    pair_by: str,
) -> str:
    if column not in before or column not in after:
        return "-"
    right = [_verdicts(runs[column][1], pair_by) for runs in (before, after)]
    fewer = min(right, key=len)
    if not all(key in one for key in fewer for one in right):
        raise ValueError(
            f"{other} and {name} answered different problems of {column}, so they cannot be "
            "paired: evaluate both with the same --limit and data"
        )
    gain = format_paired_gain(*([one[key] for key in fewer] for one in right))
    return gain if len(fewer) == max(map(len, right)) else f"{gain} · n={len(fewer)}"


def _verdicts(records: Sequence[Record], pair_by: str) -> dict[tuple[str, ...], bool]:
    """Whether each problem was answered rightly, by what identifies it in both runs of a pair."""
    keys: list[tuple[str, ...]] = list(problem_keys(records))
    if pair_by == "id":
        keys = [(key, expected) for key, _question, expected in problem_keys(records)]
    # Data of one's own may hold a problem twice: the first is paired with the first.
    seen: Counter[tuple[str, ...]] = Counter()
    found = {}
    for key, row in zip(keys, records, strict=True):
        seen[key] += 1
        found[*key, str(seen[key])] = row["correct"]
    return found


def _fenced(text: str) -> str:
    """A code block, with a fence longer than any run of backticks in the text."""
    longest = max(map(len, re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"


if __name__ == "__main__":
    main()
