"""Data sets without a registered name: a file, a folder saved by `datasets`, or a Hub id.

rows.jsonl, rows.csv.gz, ...     a file of `pipeline.data.row_files`
saved/                           a folder of `datasets.Dataset.save_to_disk`
user/name                        a data set of the Hub
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

from datasets import Dataset, DatasetDict, IterableDataset, load_from_disk

from pipeline.config import OwnDataConfig
from pipeline.data.columns import find_columns, parse_columns
from pipeline.data.conversion import Convert, ReadReport
from pipeline.data.converters import Row
from pipeline.data.float_columns import with_decimals
from pipeline.data.hub_rows import hub_dataset
from pipeline.data.own_rows import integers_are, question_converter, row_converter
from pipeline.data.row_files import file_format, read_rows

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
ROWS_FOR_COLUMNS = 100  # the columns are those of the first rows


@dataclass(frozen=True)
class OwnData:
    """Rows of the user's data and how they become problems."""

    rows: Iterator[tuple[int, Row]]
    convert: Convert
    columns: dict[str, str]  # {role: column}
    names: list[str]  # all columns that the first rows have
    note: str  # one line about the columns that were guessed, "" if none was


def is_own(name: str) -> bool:
    """Whether a name of a data set is a path or a Hub id; the empty name is neither.

    >>> is_own("rows.jsonl"), is_own("user/name"), is_own("gsm8k"), is_own("")
    (True, True, False, False)
    """
    return file_format(name) is not None or "/" in name or (name != "" and Path(name).is_dir())


def own_data(name: str, split: str, own: OwnDataConfig, *, streaming: bool = False) -> OwnData:
    """The data at a path or on the Hub; `own.dataset_split` precedes `split`.

    Raises:
        ValueError: the data cannot be read, or its columns cannot be told.
    """
    rows = _rows(name, own.dataset_split or split, own, streaming)
    first = list(islice(rows, ROWS_FOR_COLUMNS))
    if not first:
        raise ValueError(f"{name} has no rows; give data with rows")
    names = list(dict.fromkeys(column for _, row in first for column in row))
    given = parse_columns(own.columns)
    columns = find_columns(given, names, name, texts=own.reads_text, answers=own.needs_answers)
    guessed = ", ".join(f"{r}={c}" for r, c in columns.items() if r not in given)
    note = f"{name}: columns guessed: {guessed} (--columns names others)" if guessed else ""
    integers = integers_are((row for _, row in first), columns)
    convert = (
        row_converter(columns, integers=integers)
        if own.needs_answers
        else question_converter(columns)
    )
    return OwnData(chain(first, rows), convert, columns, names, note)


def require_problems(name: str, data: OwnData, report: ReadReport) -> None:
    """Raise ValueError, with the first reason and the columns, if no row is a problem."""
    if report.problems:
        return
    first = report.examples[0]
    used = ", ".join(f"{role}={column}" for role, column in data.columns.items())
    raise ValueError(
        f"{name} has no usable row among {report.rows_read:,}: row {first.line}: {first.reason} "
        f"(read as {used}); the columns there are {', '.join(data.names)}; name the right ones "
        "with --columns question=COLUMN,answer=COLUMN"
    )


def _rows(name: str, split: str, own: OwnDataConfig, streaming: bool) -> Iterator[tuple[int, Row]]:
    path = Path(name).expanduser()
    if path.is_dir():
        return enumerate(_exact(_saved(path, split)), start=1)
    if path.is_file():
        options = {"dataset_config": own.dataset_config, "dataset_split": own.dataset_split}
        options |= {"dataset_revision": own.dataset_revision}
        given = [option for option, value in options.items() if value is not None]
        if given:
            raise ValueError(f"{name} is a file, which has no {given[0]}; leave that out")
        return read_rows(path)
    if file_format(name) or not HUB_ID.fullmatch(name):
        raise ValueError(
            f"{name} does not exist; give a file, a folder saved by datasets, or user/name of the "
            "Hub"
        )
    revision = own.dataset_revision
    found = hub_dataset(name, own.dataset_config, split, streaming, revision=revision)
    return enumerate(_exact(found), start=1)


def _exact(data: Dataset | IterableDataset) -> Iterator[Row]:
    """The rows, with floats of 16 and 32 bits as the decimals that they were written from."""
    return with_decimals(data, data.features.arrow_schema) if data.features else iter(data)


def _saved(folder: Path, split: str) -> Dataset:
    """The data set of a folder; of several splits, the one asked for."""
    try:
        found = load_from_disk(str(folder))
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{folder} is no folder saved by datasets.save_to_disk ({reason}); give such a folder, "
            "or a file in it"
        ) from None
    if not isinstance(found, DatasetDict):
        return found
    if split not in found:
        raise ValueError(
            f"{folder} has no split {split!r}; --dataset_split takes one of {', '.join(found)}"
        )
    return found[split]
