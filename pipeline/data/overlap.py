"""Which questions occur more than once: inside one list of problems, and between two.

Three degrees, each pair counted at the closest one only:

    exact           the same characters
    normalised      the same but for case, whitespace and idle braces; digits and signs stay
    number_swapped  twins that differ only in their numbers: a hint that one teaches the other

A question shows its options, so two multiple-choice questions with other options are different.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from pipeline.records import Problem

Pair = tuple[int, int]

NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")
IDLE_SPACE = re.compile(r" (?=\W)|(?<=\W) ")  # a single space that parts no two words
IDLE_BRACES = re.compile(r"\{(\w)\}")  # x^{2} is x^2


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """Pairs of positions: (first one, its repeat) in a list, (train, test) between two."""

    exact: list[Pair] = field(default_factory=list)
    normalised: list[Pair] = field(default_factory=list)  # and not exact
    number_swapped: list[Pair] = field(default_factory=list)  # and not normalised

    def counts(self) -> dict[str, int]:
        return {name: len(pairs) for name, pairs in vars(self).items()}


def duplicates(problems: Sequence[Problem]) -> Overlap:
    """Every problem that repeats an earlier one, paired with the first it repeats.

    >>> twice = [Problem(question=q, answer="5") for q in ("2 + 3?", "2 +  3?", "2 + 9?")]
    >>> duplicates(twice).counts()
    {'exact': 0, 'normalised': 1, 'number_swapped': 1}
    """
    firsts: list[dict[str, int]] = [{} for _ in DEGREES]
    overlap = Overlap()
    for position, problem in enumerate(problems):
        found = _closest(problem.question, firsts)
        if found is not None:
            degree, first = found
            getattr(overlap, degree).append((first, position))
        _remember(problem.question, position, firsts)
    return overlap


def shared(train: Sequence[Problem], test: Sequence[Problem]) -> Overlap:
    """Every problem of train whose question also stands in test, paired with the first there."""
    firsts: list[dict[str, int]] = [{} for _ in DEGREES]
    for position, problem in enumerate(test):
        _remember(problem.question, position, firsts)
    overlap = Overlap()
    for position, problem in enumerate(train):
        found = _closest(problem.question, firsts)
        if found is not None:
            degree, in_test = found
            getattr(overlap, degree).append((position, in_test))
    return overlap


def without_overlap(
    train: Sequence[Problem], test: Sequence[Problem]
) -> tuple[list[Problem], list[Problem]]:
    """(kept, removed) of train: removed are those that stand in test, exact or normalised.

    Number-swapped twins are kept: "2 + 3?" is no leak of "2 + 9?". `shared` lists them.
    """
    overlap = shared(train, test)
    leaks = {position for position, _ in (*overlap.exact, *overlap.normalised)}
    kept = [problem for i, problem in enumerate(train) if i not in leaks]
    removed = [problem for i, problem in enumerate(train) if i in leaks]
    return kept, removed


# A data card compares every split with every other, so each question is asked for many times.
@lru_cache(maxsize=2**17)
def normalised(question: str) -> str:
    """Lower case, whitespace only between two words, no braces round a single character.

    >>> normalised(" What  is\\n$x^{2} - 3$? ")
    'what is$x^2-3$?'
    """
    return IDLE_BRACES.sub(r"\1", IDLE_SPACE.sub("", " ".join(question.lower().split())))


@lru_cache(maxsize=2**17)
def masked_numbers(question: str) -> str:
    """normalised, with every number replaced by one sign.

    >>> masked_numbers("Is 1,234.5 > 7?")
    'is #>#?'
    """
    return NUMBER.sub("#", normalised(question))


def _exact(question: str) -> str:
    return question


DEGREES: dict[str, Callable[[str], str]] = {
    "exact": _exact,
    "normalised": normalised,
    "number_swapped": masked_numbers,
}


def _closest(question: str, firsts: list[dict[str, int]]) -> tuple[str, int] | None:
    for (degree, key), first in zip(DEGREES.items(), firsts, strict=True):
        position = first.get(key(question))
        if position is not None:
            return degree, position
    return None


def _remember(question: str, position: int, firsts: list[dict[str, int]]) -> None:
    for key, first in zip(DEGREES.values(), firsts, strict=True):
        first.setdefault(key(question), position)
