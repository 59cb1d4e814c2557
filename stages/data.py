"""Print and save a data card: rows, dropped rows, lengths, duplicates, shared questions.

python -m stages.data --names gsm8k,math [--data_root DIR] [--tokenizer MODEL] [--golds true]

`--names all` reads every data set under the data root. With a tokenizer, lengths are counted in
tokens and plotted. `--golds true` grades every expected answer as if a model had written it.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer
from transformers.hf_argparser import HfArg

from pipeline.chat.tags import END_THINK, split_completion
from pipeline.cli import CommandParser
from pipeline.config import OwnDataConfig, PositiveInt, Required, check_types
from pipeline.data import is_own_data
from pipeline.data.card import Card, data_card, plot_lengths, token_counts
from pipeline.data.problems import available_splits, read_problems
from pipeline.data.registry import SOURCES
from pipeline.data.sft_examples import visible_answer
from pipeline.grading import grade
from pipeline.progress import Progress
from pipeline.records import Problem
from pipeline.runtime import one_line_errors


@dataclass(kw_only=True)
class DataCardConfig(OwnDataConfig):
    """The data sets of the card."""

    names: Required = HfArg(
        default="gsm8k,math",
        help="data sets, or files and Hub ids of your own, separated by commas",
    )
    data_root: str | None = HfArg(
        default=None, help="folder with NAME/SPLIT.jsonl.gz; default: $THINKHEAD_DATA, else the Hub"
    )
    limit: PositiveInt | None = HfArg(default=None, help="problems of each split; default: all")
    tokenizer: str | None = HfArg(default=None, help="folder or Hub name; plots lengths in tokens")
    golds: bool = HfArg(default=False, help="also grade every expected answer against itself")
    processes: PositiveInt = HfArg(default=1, help="processes that read rows")
    output_dir: str = HfArg(default="runs/data", help="folder of data_card.json")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_types(self)


def main(config: DataCardConfig) -> None:
    """Read the data sets, print the tables and write data_card.json."""
    reports = {
        name if is_own_data(name) else f"{name}/{split}": read_problems(
            name, split, config.data_root, config.limit, config.processes, config
        )
        for name in names_of(config)
        for split in splits_of(name, config.data_root)
    }
    tokens = token_counter(config.tokenizer) if config.tokenizer else None
    for note in filter(None, (report.note for report in reports.values())):
        print(note)
    card = data_card(reports, tokens)
    console = Console(markup=False)  # names and answers may have brackets
    console.print(split_table(card))
    console.print(privacy_line(card))
    if card["shared"]:
        console.print(shared_table(card))
    if config.golds:
        total = sum(len(report.problems) for report in reports.values())
        with Progress(total, "grading golds", unit="golds") as progress:
            card["golds"] = {o: graded_golds(r.problems, progress) for o, r in reports.items()}
        console.print(gold_table(card))
    if tokens:
        picture = Path(config.output_dir) / "token_lengths.png"
        plot_lengths({o: token_counts(r, tokens) for o, r in reports.items()}, picture)
        console.print(f"wrote {picture}")
    path = Path(config.output_dir) / "data_card.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    console.print(f"wrote {path}")


def names_of(config: DataCardConfig) -> list[str]:
    """The given names; "all" is every data set with files under the data root."""
    if config.names != "all":
        return config.names.replace(",", " ").split()
    local = [name for name, source in SOURCES.items() if not source.hub_only]
    return [name for name in local if available_splits(name, config.data_root)]


def token_counter(name: str) -> Callable[[Sequence[str]], list[int]]:
    """A function of texts that returns the number of tokens of each."""
    tokenizer = AutoTokenizer.from_pretrained(name)

    def count(texts: Sequence[str]) -> list[int]:
        ids = tokenizer(list(texts), add_special_tokens=False).input_ids if texts else []
        return [len(row) for row in ids]

    return count


def graded_golds(problems: Sequence[Problem], progress: Progress | None = None) -> dict[str, Any]:
    """Grades of the expected answers in the form that SFT teaches.

    Number graded and accepted, the refused ones as "id: answer", and rows a second.
    """
    begin = time.perf_counter()
    refused = []
    for problem in problems:
        completion = f"{problem.thought or 'Thinking.'}{END_THINK}{visible_answer(problem)}"
        parts = split_completion(completion)
        if parts is None or not grade(problem, parts[1]).passed:
            refused.append(f"{problem.id}: {problem.answer}"[:200])
        if progress is not None:
            progress.advance(1)
    seconds = time.perf_counter() - begin
    return {
        "graded": len(problems),
        "accepted": len(problems) - len(refused),
        "refused": refused,
        "a_second": round(len(problems) / max(seconds, 1e-9)),
    }


def gold_table(card: Card) -> Table:
    """Grades of the expected answers by split, with up to three that were refused."""
    table = Table("split", "graded", "accepted", "a second", "refused", title="Golds")
    for origin, row in card["golds"].items():
        some = "; ".join(row["refused"][:3])
        table.add_row(
            origin, f"{row['graded']:,}", f"{row['accepted']:,}", str(row["a_second"]), some
        )
    return table


def splits_of(name: str, data_root: str | None) -> tuple[str, ...]:
    """The splits of a data set that can be read; ValueError without any."""
    splits = available_splits(name, data_root)
    if not splits:
        raise ValueError(f"{name} has no split here; give a data_root that holds a folder for it")
    divided = name in SOURCES and SOURCES[name].divided_by
    return tuple(split for split in splits if not divided or split != "all")


def split_table(card: Card) -> Table:
    """Rows read, kept and dropped, and lengths, by split."""
    table = Table(title="Splits (characters: median/95th percentile)", box=SIMPLE_HEAD)
    table.add_column("split", no_wrap=True)
    for column in ("read", "kept", "question", "thought", "answer", "repeats"):
        table.add_column(column, justify="right", no_wrap=True)
    dropped = []
    for origin, row in card["splits"].items():
        spans = [f"{span['median']}/{span['p95']}" for span in row["characters"].values()]
        repeats = str(row["duplicates"]["exact"])
        table.add_row(origin, f"{row['rows_read']:,}", f"{row['kept']:,}", *spans, repeats)
        dropped += [f"{origin}: {rows:,} {reason}" for reason, rows in row["dropped"].items()]
    table.caption = "Rows dropped: " + ("; ".join(dropped) or "none")
    table.caption_justify = "left"
    return table


def privacy_line(card: Card) -> str:
    """One line for each split with e-mail addresses, phone numbers, keys and the like."""
    lines = []
    for origin, row in card["splits"].items():
        own = row["privacy"]
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in own["found"].items() if count)
        if kinds:
            rows = f"{own['rows_with_findings']:,} of {own['rows']:,} rows"
            lines.append(f"{origin}: {kinds} in {rows}")
    return "Private data: " + ("; ".join(lines) or "none found")


def shared_table(card: Card) -> Table:
    """Questions that two splits have in common."""
    table = Table(title="Shared questions", box=SIMPLE_HEAD)
    for column in ("in", "also in"):
        table.add_column(column, no_wrap=True)
    for column in ("exact", "normalised", "n-grams", "number-\nswapped"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in card["shared"]:
        table.add_row(*(str(value) for value in row.values()))
    return table


@one_line_errors
def command(argv: Sequence[str] | None = None) -> None:
    """Make the data card that the command line asks for."""
    main(*CommandParser([DataCardConfig]).parse_args_and_config(argv))


if __name__ == "__main__":
    command()
