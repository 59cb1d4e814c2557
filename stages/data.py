"""What is in the data: rows read and dropped, lengths, repeats, questions shared between splits.

python -m stages.data --names gsm8k,math [--data_root DIR] [--output_dir DIR]
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from transformers.hf_argparser import HfArg

from pipeline.config import CommandParser, check_types
from pipeline.data.card import Card, data_card
from pipeline.data.problems import available_splits, read_problems
from pipeline.runtime import one_line_errors


@dataclass(kw_only=True)
class DataCardConfig:
    """Which data sets to look at."""

    names: str = HfArg(default="gsm8k,math", help="data sets, separated by commas")
    data_root: str | None = HfArg(
        default=None, help="folder with NAME/SPLIT.jsonl.gz; default REASONER_DATA, else the Hub"
    )
    limit: int | None = HfArg(default=None, help="problems of each split; default all")
    output_dir: str = HfArg(default="runs/data", help="where data_card.json goes")

    def __post_init__(self) -> None:
        check_types(self)


def main(config: DataCardConfig) -> None:
    reports = {
        f"{name}/{split}": read_problems(name, split, config.data_root, config.limit)
        for name in config.names.replace(",", " ").split()
        for split in splits_of(name, config.data_root)
    }
    card = data_card(reports)
    console = Console()
    console.print(split_table(card))
    if card["shared"]:
        console.print(shared_table(card))
    path = Path(config.output_dir) / "data_card.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    console.print(f"wrote {path}")


def splits_of(name: str, data_root: str | None) -> tuple[str, ...]:
    splits = available_splits(name, data_root)
    if not splits:
        raise ValueError(f"{name} has no split here; give a data_root that holds a folder for it")
    return splits


def split_table(card: Card) -> Table:
    table = Table(title="Splits (characters: median / 95th percentile)")
    for column in ("split", "read", "kept", "question", "thought", "answer", "repeats", "dropped"):
        table.add_column(column, justify="left" if column in ("split", "dropped") else "right")
    for origin, row in card["splits"].items():
        spans = [f"{span['median']} / {span['p95']}" for span in row["characters"].values()]
        dropped = ", ".join(f"{reason}: {rows:,}" for reason, rows in row["dropped"].items())
        repeats = str(row["duplicates"]["exact"])
        table.add_row(
            origin, f"{row['rows_read']:,}", f"{row['kept']:,}", *spans, repeats, dropped or "-"
        )
    return table


def shared_table(card: Card) -> Table:
    table = Table(
        "in",
        "also in",
        "exact",
        "normalised",
        "n-grams",
        "number-swapped",
        title="Shared questions",
    )
    for row in card["shared"]:
        table.add_row(*(str(value) for value in row.values()))
    return table


@one_line_errors
def command(argv: Sequence[str] | None = None) -> None:
    main(*CommandParser([DataCardConfig]).parse_args_and_config(argv))


if __name__ == "__main__":
    command()
