"""Rows of the user's own files with line numbers: .jsonl, .json, .csv, .parquet, .txt; also .gz.

A file with a fault in its form raises ValueError in one line, with the file, the row, the rule and
a remedy. A byte order mark is skipped. CSV is separated by comma, semicolon or tab, as its header.
"""

import csv
import gzip
import io
import json
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NoReturn, cast

import pyarrow
import pyarrow.parquet

from pipeline.data.converters import Row
from pipeline.data.float_columns import with_decimals

FORMATS = (".jsonl", ".json", ".csv", ".parquet", ".txt")
MAX_ROW_BYTES = 2**24  # a longer line is no row of text
GZIP_MAGIC = b"\x1f\x8b"
PARQUET_ROWS = 1000


def file_format(path: str | Path) -> str | None:
    """The format that a file's name states, without .gz; None where it states none of FORMATS.

    >>> file_format("a/rows.jsonl.gz"), file_format("rows.csv"), file_format("user/name")
    ('.jsonl', '.csv', None)
    """
    suffix = Path(str(path).lower().removesuffix(".gz")).suffix
    return suffix if suffix in FORMATS else None


def read_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """(line, row) of every row; of .json and .parquet, the number of the row from 1.

    Raises:
        ValueError: the file has a fault in its form.
    """
    readers = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".parquet": _parquet, ".txt": _txt}
    kind = file_format(path)
    if kind is None:
        raise ValueError(
            f"{path}: the name must end in one of {', '.join(FORMATS)}, or that and .gz; "
            "rename or convert the file"
        )
    rows = 0
    try:
        for number, row in readers[kind](path):
            rows += 1
            yield number, row
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        _refuse(path, rows + 1, f"the gzip data is damaged ({error})", "copy the file again")
    if not rows:
        raise ValueError(
            f"{path} has no rows: it is empty or a header alone; give a file with rows"
        )


def _refuse(path: Path, row: int, rule: str, remedy: str, *, unit: str = "line") -> NoReturn:
    raise ValueError(f"{path}, {unit} {row}: {rule}; {remedy}") from None


def _open(path: Path) -> BinaryIO:
    file = path.open("rb")
    if path.suffix.lower() != ".gz":
        return file
    with file:
        if file.read(2) != GZIP_MAGIC:
            _refuse(path, 1, "the file is not gzip", "compress it, or rename it without .gz")
    return cast(BinaryIO, gzip.open(path))


def _lines(path: Path) -> Iterator[str]:
    with _open(path) as file:
        number = 0
        while line := file.readline(MAX_ROW_BYTES + 1):
            number += 1
            if len(line) > MAX_ROW_BYTES:
                rule = f"the line is longer than {MAX_ROW_BYTES >> 20} MiB"
                _refuse(path, number, rule, "write one row a line")
            yield _decoded(path, line, number)


def _decoded(path: Path, content: bytes, number: int) -> str:
    try:
        return content.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        rule = f"byte {error.start + 1} is 0x{content[error.start]:02x}, which is not UTF-8"
        _refuse(path, number, rule, "convert the file, as with iconv -f latin1 -t utf-8")


def _jsonl(path: Path) -> Iterator[tuple[int, Row]]:
    for number, line in enumerate(_lines(path), start=1):
        if line.strip():
            yield number, _object(path, _parsed(path, line.strip(), number), number)


def _parsed(path: Path, text: str, number: int) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = number + error.lineno - 1
        rule = f"not valid JSON ({error.msg} at character {error.colno})"
        _refuse(path, place, rule, "correct or remove the row")
    except RecursionError:
        _refuse(path, number, "lists or objects are nested too deeply", "flatten the row")
    except ValueError:
        _refuse(path, number, "a number has too many digits", "write it as a text, in quotes")


def _txt(path: Path) -> Iterator[tuple[int, Row]]:
    """{"text": paragraph}; empty lines separate paragraphs."""
    begin, paragraph = 0, ""
    for number, line in enumerate(_lines(path), start=1):
        if line.strip():
            begin, paragraph = begin or number, paragraph + line
        elif paragraph:
            yield begin, {"text": paragraph.rstrip()}
            begin, paragraph = 0, ""
    if paragraph:
        yield begin, {"text": paragraph.rstrip()}


def _object(path: Path, row: object, number: int, unit: str = "line") -> Row:
    if not isinstance(row, dict):
        kind = "a list" if isinstance(row, list) else "a single value"
        rule = f'a row must be an object as {{"question": ..., "answer": ...}}, not {kind}'
        _refuse(path, number, rule, "name the cells of the row", unit=unit)
    return row


def _json(path: Path) -> Iterator[tuple[int, Row]]:
    """The objects of one list, or of {"data": list}; a file of JSON lines is read as such."""
    with _open(path) as file:
        text = _decoded(path, file.read(), 1)
    if not text.strip():
        return
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            yield from _jsonl(path)
            return
        content = _parsed(path, text, 1)  # raises
    except (RecursionError, ValueError):
        content = _parsed(path, text, 1)  # raises
    if isinstance(content, dict):
        lists = [value for value in content.values() if isinstance(value, list)]
        content = lists[0] if len(lists) == 1 and len(content) == 1 else [content]
    if not isinstance(content, list):
        _refuse(path, 1, "the file must hold a list of objects", "write one object for each row")
    for number, row in enumerate(content, start=1):
        yield number, _object(path, row, number, "row")


def _csv(path: Path) -> Iterator[tuple[int, Row]]:
    """Rows of a CSV file; an empty cell is None."""
    csv.field_size_limit(MAX_ROW_BYTES)
    lines = _lines(path)
    first = next(lines, "")
    separator = max(",;\t", key=first.count)
    reader = csv.reader(_chained(first, lines), delimiter=separator, strict=True)
    header: list[str] = []
    begin = 1
    try:
        for cells in reader:
            if not header:
                header = _header(path, [cell.strip() for cell in cells])
            elif cells:
                if len(cells) != len(header):
                    rule = f"{len(cells)} cells, but the header names {len(header)}"
                    _refuse(path, begin, rule, 'put cells with separators or quotes in "..."')
                yield begin, {n: c or None for n, c in zip(header, cells, strict=True)}
            begin = reader.line_num + 1
    except csv.Error as error:
        _refuse(path, begin, f"not valid CSV ({error})", 'write a quote inside a cell as ""')


def _chained(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _header(path: Path, names: list[str]) -> list[str]:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        rule = f"the header names the column {twice[0]!r} more than once"
        _refuse(path, 1, rule, "give every column its own name")
    return names


def _parquet(path: Path) -> Iterator[tuple[int, Row]]:
    with _open(path) as file:
        source = io.BytesIO(file.read()) if path.suffix.lower() == ".gz" else file
        try:
            table = pyarrow.parquet.ParquetFile(source)
            _header(path, table.schema_arrow.names)
            batches = table.iter_batches(batch_size=PARQUET_ROWS)
            rows = (row for batch in batches for row in batch.to_pylist())
            yield from enumerate(with_decimals(rows, table.schema_arrow), start=1)
        except (pyarrow.ArrowException, OSError) as error:
            reason = " ".join(str(error).split())[:200]
            _refuse(path, 1, f"not a Parquet file ({reason})", "write the file again", unit="row")
