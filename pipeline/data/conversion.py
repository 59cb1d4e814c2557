"""Convert rows to problems; every row becomes a problem or is dropped for a reason, and counted."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from pipeline.data.converters import Row, RowError
from pipeline.records import Problem

EXAMPLES_PER_REASON = 3
Convert = Callable[[Row], Problem]


@dataclass(frozen=True, kw_only=True)
class DroppedRow:
    """A row that was read and not kept."""

    line: int  # in the file, from 1; on the Hub the position of the row
    reason: str
    excerpt: str  # first characters of the row


@dataclass(frozen=True, kw_only=True)
class ReadReport:
    """Problems and dropped rows: rows_read == len(problems) + the sum of dropped.

    >>> ReadReport(problems=[], rows_read=2, dropped={"no answer": 2}).kept
    0
    """

    problems: list[Problem]
    rows_read: int
    dropped: dict[str, int] = field(default_factory=dict)  # reason -> rows
    examples: list[DroppedRow] = field(default_factory=list)  # the first few of each reason
    note: str = ""  # one line on how the rows were read, if there is something to say

    @property
    def kept(self) -> int:
        """Number of problems."""
        return len(self.problems)


def convert_rows(
    convert: Convert, rows: Iterator[tuple[int, bytes | Row]], origin: str, limit: int | None
) -> ReadReport:
    """The problems of (line, row) pairs, the first `limit` of them, with the rows dropped."""
    problems: list[Problem] = []
    examples: list[DroppedRow] = []
    dropped: Counter[str] = Counter()
    rows_read = 0
    for line, raw in rows:
        rows_read += 1
        found = problem_or_reason(convert, raw, line, origin)
        if isinstance(found, Problem):
            problems.append(found)
        else:
            dropped[found] += 1
            if dropped[found] <= EXAMPLES_PER_REASON:
                examples.append(DroppedRow(line=line, reason=found, excerpt=_excerpt(raw)))
        if len(problems) == limit:
            break
    return ReadReport(
        problems=problems, rows_read=rows_read, dropped=dict(dropped), examples=examples
    )


def problem_or_reason(convert: Convert, raw: bytes | Row, line: int, origin: str) -> Problem | str:
    """The problem of a row, or the reason why it has none."""
    try:
        problem = convert(parse_row(raw))
    except RowError as error:
        return str(error)
    if not _is_text(problem):
        return "not valid Unicode (a lone surrogate)"
    return replace(problem, source=origin, id=problem.id or str(line))


def parse_row(raw: bytes | Row) -> Row:
    """The row of a line of JSON; a row that is one already stays as it is."""
    if not isinstance(raw, bytes):
        return raw
    try:
        row = json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise RowError("not valid UTF-8") from None
    except (ValueError, RecursionError):  # also a number of too many digits
        raise RowError("not valid JSON") from None
    if not isinstance(row, dict):
        raise RowError("not a JSON object")
    return row


def _is_text(problem: Problem) -> bool:
    r"""Whether every text can be encoded as UTF-8; JSON can contain lone surrogates, which cannot.

    >>> [_is_text(Problem(question=text, answer="5")) for text in ("\ud800", "é")]
    [False, True]
    """
    texts = (problem.question, problem.answer, problem.thought, *problem.choices)
    try:
        turns = [text for _, text in problem.turns]
        "".join([*texts, *turns, problem.level, problem.id, problem.check]).encode()
    except UnicodeEncodeError:
        return False
    return True


def _excerpt(raw: bytes | Row) -> str:
    text = raw.decode(errors="replace") if isinstance(raw, bytes) else str(dict(raw))
    return text.strip()[:120]
