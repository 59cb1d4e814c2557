r"""Whether two short LaTeX expressions are equal, by math-verify in a worker process.

Not every pair goes there: power towers, large factorials, sums, and every command that is not in a
short list are refused before, since they can take math-verify any time or are read in two ways.
"""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from pipeline.grading.worker import SETTLED, Worker

logger = logging.getLogger(__name__)

TRIES = (1.0, 2.0)  # seconds of processor time of one comparison, in the first and second try
BUDGET_SECONDS = 3.0  # of processor time for all comparisons of one answer
MAX_CHARACTERS = 300
MAX_REMEMBERED = 8192

Pair = tuple[str, str]


class ComparisonBudget:
    """The comparisons of one answer, which share BUDGET_SECONDS of processor time."""

    def __init__(self) -> None:
        self.seconds = BUDGET_SECONDS

    def agree(self, given: str, expected: str) -> bool:
        """Whether math-verify finds two formulas in plain form equal; False when in doubt.

        A comparison without an outcome counts as False here; it is logged, counted, and added to
        `comparisons_without_verdict`.
        """
        if not _is_comparable(given, expected):
            return False
        outcome = "timeout"
        if self.seconds > 0:
            # A remembered comparison costs what it cost at first, so that what is left for the
            # next one does not depend on earlier answers.
            outcome, seconds = _remembered.get((given, expected)) or _compared(given, expected)
            self.seconds -= seconds
        if outcome not in SETTLED:
            logger.warning("no verdict on %.80r against %.80r", given, expected)
            missing = _without_verdict.get()
            if missing is not None:
                missing.append((given, expected))
        return outcome == "equal"


@contextmanager
def comparisons_without_verdict() -> Iterator[list[Pair]]:
    """The list of comparisons, (given, expected), that end without an outcome inside the block."""
    found: list[Pair] = []
    token = _without_verdict.set(found)
    try:
        yield found
    finally:
        _without_verdict.reset(token)


def grader_stats() -> dict[str, int]:
    """Counts of the worker process: requests, timeouts, failures on its input, losses, starts, and
    comparisons left without a verdict."""
    return dict(_worker.counts)


_worker = Worker("math_worker", package="math_verify")
_remembered: dict[Pair, tuple[str, float]] = {}
_without_verdict: ContextVar[list[Pair] | None] = ContextVar("without_verdict", default=None)


def _compared(given: str, expected: str) -> tuple[str, float]:
    """(outcome, seconds of processor time), remembered: samples of one question repeat it."""
    outcome, seconds = _worker.compare(given, expected, TRIES)
    if outcome == "failed":
        logger.debug("math-verify cannot read %.80r or %.80r", given, expected)
    if len(_remembered) >= MAX_REMEMBERED:
        _remembered.clear()
    # A timeout depends on the pair and is remembered; the loss of a worker does not.
    if outcome != "lost":
        _remembered[given, expected] = outcome, seconds
    return outcome, seconds


_GREEK = r"\\(?:pi|alpha|beta|gamma|delta|theta|lambda|mu|phi|omega)(?![A-Za-z])"
_COMMANDS = re.compile(
    rf"{_GREEK}|\\(?:frac|sqrt|cdot|times|div|infty|le|ge|sin|cos|tan|cot|sec|csc|arcsin|arccos"
    r"|arctan|log|ln|exp)(?![A-Za-z])"
)
_SIGNS = re.compile(r"[A-Za-z0-9+\-*/^_(){}\[\]|=<>.!\\ ]+")
_RELATION = re.compile(r"[=<>]|\\[lg]e(?![A-Za-z])")
_SMALL_RATIO = re.compile(r"\\frac\{(-?\d{1,2})\}\{(\d{1,2})\}")
_REFUSED = re.compile(
    r"\d \d"  # two numbers side by side: a sum to the parser
    r"|\\sqrt(?![\[{])|/(?:\d+|[A-Za-z])[A-Za-z(\\]"  # 1/2x: half of x, or one over 2x?
    r"|\d_|\^-?\d\d|\^\("  # a base, and exponents that TeX reads differently from people
    r"|\^\w\^|\^\{[^{}]*[\^{]|\^\{-?(?:\d{3}|6[5-9]|[7-9]\d)"  # towers and large powers
    r"|\d{40}|[^\d]!|!!|(?:\d{3,}|[3-9]\d|2[1-9])!"  # large numbers and factorials
)
_NAME = re.compile(r"[A-Z]{2}|[A-Za-z]{4}")  # as products, any order of letters would be equal


def _is_comparable(given: str, expected: str) -> bool:
    r"""Whether both are short harmless formulas about the same letters.

    >>> _is_comparable("2x+2", "2(x+1)"), _is_comparable("x", "X"), _is_comparable("9^{9^{9}}", "7")
    (True, False, False)
    """
    if not (_is_formula(given) and _is_formula(expected)):
        return False
    relations = len(_RELATION.findall(given)), len(_RELATION.findall(expected))
    return relations in ((0, 0), (1, 1)) and _names(given) == _names(expected)


def _is_formula(text: str) -> bool:
    without_commands = _COMMANDS.sub("|", text)
    return (
        len(text) <= MAX_CHARACTERS
        and bool(_SIGNS.fullmatch(text))
        and "\\" not in without_commands
        and bool(re.search(r"\d|[+\-*/^=<>|]", without_commands))
        and not _NAME.search(without_commands)
        and not _REFUSED.search(_SMALL_RATIO.sub(r"(\1/\2)", text))
        and not re.search(r"\d\\frac\{\d+\}\{\d+\}", text)
    )


def _names(text: str) -> set[str]:
    """The letters and Greek letters of a formula."""
    return set(re.findall(_GREEK, text)) | set(re.sub(r"\\[A-Za-z]+|[^A-Za-z]", "", text))
