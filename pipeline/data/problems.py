"""Load problems by the name of a data set, from a local copy under a data root or from the Hub.

Every row becomes a problem or is dropped for a reason that is counted and reported.
"""

import gzip
import hashlib
import logging
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from difflib import get_close_matches
from functools import partial
from itertools import count, islice
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

from pipeline.config import OwnDataConfig
from pipeline.data.arithmetic_problems import SUITES, suite_problems
from pipeline.data.conversion import (
    EXAMPLES_PER_REASON,
    ReadReport,
    convert_rows,
    parse_row,
    problem_or_reason,
)
from pipeline.data.converters import Row, RowError
from pipeline.data.hub_rows import DATA_ROOT_VARIABLE, hub_dataset
from pipeline.data.own import is_own, own_data, require_problems
from pipeline.data.quadratics import quadratic_problems
from pipeline.data.reasoning_gym_tasks import PREFIX, puzzle_problems
from pipeline.data.registry import SOURCES, Source
from pipeline.records import Problem
from pipeline.runtime import environment

ROWS_A_JOB = 1000

T = TypeVar("T")

# Generated problems by name: (split, limit) -> problems. These names precede those of SOURCES.
GENERATED: dict[str, Callable[[str, int | None], list[Problem]]] = {
    name: partial(suite_problems, name) for name in SUITES
}
GENERATED["quadratics"] = quadratic_problems
GENERATED_SPLITS = ("train", "test")

logger = logging.getLogger(__name__)


def load_problems(
    name: str, split: str, data_root: str | Path | None = None, limit: int | None = None
) -> list[Problem]:
    """The first `limit` usable problems of a split, all of them by default, in file order.

    Args:
        data_root: a folder laid out as NAME/SPLIT.jsonl.gz. None reads the environment variable
            THINKHEAD_DATA; if that is unset too, or with "", the rows come from the Hub.

    Raises:
        ValueError: unknown name or split, unreadable files, or no usable row.
    """
    report = read_problems(name, split, data_root, limit)
    if report.dropped:
        reasons = ", ".join(f"{reason}: {rows}" for reason, rows in report.dropped.items())
        first = report.examples[0].line
        logger.warning(
            f"{name}/{split}: {report.rows_read - report.kept} of {report.rows_read} rows dropped "
            f"({reasons}), the first in line {first}"
        )
    if not report.problems:
        raise ValueError(
            f"{name}/{split} has no usable row among {report.rows_read}, dropped: "
            f"{report.dropped}; the fields must be those of the Hub's version"
        )
    return report.problems


def read_problems(
    name: str,
    split: str,
    data_root: str | Path | None = None,
    limit: int | None = None,
    processes: int = 1,
    own: OwnDataConfig | None = None,
) -> ReadReport:
    """As load_problems, with the rows read, the rows dropped by reason, and examples of those.

    `name` may also be a file, a saved folder or a Hub id, with `own` for its columns and split.

    Several `processes` convert rows in parallel and give the same report.

    Raises:
        ValueError: a limit below 1, an unknown name or split, or unreadable files.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit} must be at least 1; leave it out to read everything")
    if name in GENERATED:
        problems = GENERATED[name](split, limit)
        return ReadReport(problems=problems, rows_read=len(problems))
    if name.startswith(PREFIX):
        problems = puzzle_problems(name.removeprefix(PREFIX), split, limit)
        return ReadReport(problems=problems, rows_read=len(problems))
    if is_own_data(name):
        data = own_data(name, split, own or OwnDataConfig())
        report = convert_rows(data.convert, data.rows, name, limit)
        require_problems(name, data, report)
        return replace(report, note=data.note)
    source = _source(name)
    if split not in source.splits:
        raise ValueError(f"split={split!r} is not one of {name}: {', '.join(source.splits)}")
    rows = _rows(name, source, split, data_folder(data_root))
    if processes > 1 and limit is None:
        return _converted_by_many(name, rows, split, processes)
    return convert_rows(source.convert, rows, f"{name}/{split}", limit)


def stream_problems(
    name: str,
    split: str,
    data_root: str | Path | None = None,
    own: OwnDataConfig | None = None,
) -> Iterator[Problem]:
    """The usable problems one by one, without holding or downloading the whole split.

    Dropped rows are counted and logged at the end, guessed columns at the beginning.

    Raises:
        ValueError: unknown name or split, or unreadable files; when the first problem is read.
    """
    if name in GENERATED or name.startswith(PREFIX):
        yield from read_problems(name, split).problems
        return
    rows: Iterator[tuple[int, bytes | Row]]
    if is_own_data(name):
        data = own_data(name, split, own or OwnDataConfig(), streaming=True)
        origin, convert, rows = name, data.convert, data.rows
        if data.note:
            logger.warning(data.note)
    else:
        source = _source(name)
        if split not in source.splits:
            raise ValueError(f"split={split!r} is not one of {name}: {', '.join(source.splits)}")
        origin, convert = f"{name}/{split}", source.convert
        rows = _rows(name, source, split, data_folder(data_root), streaming=True)
    dropped: Counter[str] = Counter()
    for line, raw in rows:
        problem = problem_or_reason(convert, raw, line, origin)
        if isinstance(problem, Problem):
            yield problem
        else:
            dropped[problem] += 1
    if dropped:
        logger.warning(f"{origin}: {dropped.total()} rows dropped ({dict(dropped)})")


def available_splits(name: str, data_root: str | Path | None = None) -> tuple[str, ...]:
    """The splits that can be read: files under the data root, without one the parts on the Hub; of
    the user's own data, "train"."""
    if name in GENERATED or name.startswith(PREFIX):
        return GENERATED_SPLITS
    if is_own_data(name):
        return ("train",)
    source, root = _source(name), data_folder(data_root)
    if root is None or source.hub_only:
        return source.splits if source.divided_by and source.hub_parts else tuple(source.hub_parts)
    return tuple(split for split in source.splits if _file(root, source, split) is not None)


def _source(name: str) -> Source:
    if name in SOURCES:
        return SOURCES[name]
    names = [*GENERATED, *SOURCES]
    close = get_close_matches(name, names, n=1)
    guess = f"; did you mean {close[0]!r}?" if close else "."
    raise ValueError(
        f"unknown data set {name!r}{guess} Known: {', '.join(names)}; your own data is a path to a "
        ".jsonl, .json, .csv or .parquet file, or user/name on the Hub"
    )


def is_own_data(name: str) -> bool:
    """Whether the user's own data has the name; a registered name precedes a folder's."""
    return name not in SOURCES and is_own(name)


def data_folder(data_root: str | Path | None) -> Path | None:
    """The data root as an existing folder; None to read from the Hub.

    Raises:
        ValueError: it is not a folder.
    """
    root = environment("DATA") or "" if data_root is None else data_root
    if not str(root):
        return None
    if not Path(root).is_dir():
        raise ValueError(
            f"data_root={str(root)!r} is not a folder; give one laid out as NAME/SPLIT.jsonl.gz, "
            f"or leave data_root and {DATA_ROOT_VARIABLE} empty to load from the Hub"
        )
    return Path(root)


def _file(root: Path, source: Source, split: str) -> Path | None:
    stem = "all" if source.divided_by else split
    paths = [root / source.folder / f"{stem}{suffix}" for suffix in (".jsonl.gz", ".jsonl")]
    return next((path for path in paths if path.is_file()), None)


def _rows(
    name: str, source: Source, split: str, root: Path | None, streaming: bool = False
) -> Iterator[tuple[int, bytes | Row]]:
    if source.divided_by and split != "all":
        rows = _rows(name, source, "all", root, streaming)
        return ((line, raw) for line, raw in rows if _part(raw, source.divided_by) == split)
    path = root and _file(root, source, split)
    if path:
        return _lines(path)
    if root is None or source.hub_only:
        return _hub_rows(name, source, split, streaming)
    remedy = (
        ", or leave the data root empty to load from the Hub" if split in source.hub_parts else ""
    )
    raise ValueError(
        f"{root / source.folder / split}.jsonl.gz (or .jsonl) is missing; add the file{remedy}"
    )


def _part(raw: bytes | Row, fields: Sequence[str]) -> str:
    """ "train" or "test" for a row of a divided data set, by a hash of the words of its question.

    >>> [_part({"question": f"Ann has {n} hens. How many?"}, ["question"]) for n in (2, 30)]
    ['test', 'test']
    """
    try:
        row = parse_row(raw)
    except RowError:
        return "train"
    words = re.findall("[a-z]+", " ".join(str(row.get(field, "")) for field in fields).lower())
    return "train" if hashlib.sha256(" ".join(words).encode()).digest()[0] % 5 else "test"


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(line number, line) of every line that is not blank."""
    number = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(
            f"{path} is truncated after line {number} ({error}); download the file again"
        ) from error


def _hub_rows(name: str, source: Source, split: str, streaming: bool) -> Iterator[tuple[int, Row]]:
    if split not in source.hub_parts:
        offer = f" (it has: {', '.join(source.hub_parts)})" if source.hub_parts else ""
        raise ValueError(
            f"{name}/{split} is not on the Hub{offer}; give data_root or {DATA_ROOT_VARIABLE} "
            f"with {source.folder}/{split}.jsonl.gz in it"
        )
    numbers = count(1)
    for config, hub_split in source.hub_parts[split]:
        for row in hub_dataset(source.hub, config, hub_split, streaming):
            yield next(numbers), {"config": config, **row}


def _converted_by_many(
    name: str, rows: Iterator[tuple[int, bytes | Row]], split: str, processes: int
) -> ReadReport:
    """As _convert, in several processes; the parts are joined in order."""
    with get_context("spawn").Pool(processes) as pool:
        jobs = ((name, part, split) for part in _batched(rows, ROWS_A_JOB))
        parts = list(pool.imap(_convert_part, jobs))
    dropped = sum((Counter(part.dropped) for part in parts), Counter())
    shown: Counter[str] = Counter()
    examples = []
    for example in (e for part in parts for e in part.examples):
        shown[example.reason] += 1
        if shown[example.reason] <= EXAMPLES_PER_REASON:
            examples.append(example)
    return ReadReport(
        problems=[p for part in parts for p in part.problems],
        rows_read=sum(part.rows_read for part in parts),
        dropped=dict(dropped),
        examples=examples,
    )


def _convert_part(job: tuple[str, list[tuple[int, bytes | Row]], str]) -> ReadReport:
    name, rows, split = job
    return convert_rows(_source(name).convert, iter(rows), f"{name}/{split}", None)


def _batched(rows: Iterator[T], size: int) -> Iterator[list[T]]:
    """Lists of at most `size`, in order.

    >>> list(_batched(iter("abcde"), 2))
    [['a', 'b'], ['c', 'd'], ['e']]
    """
    while part := list(islice(rows, size)):
        yield part
