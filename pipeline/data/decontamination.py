"""Find questions that occur more than once, within a list of problems and between two lists.

Four degrees; a pair counts at the closest one only:

    exact           the same characters
    normalised      the same except for case, whitespace, redundant braces and variants of LaTeX;
                    digits and signs count
    ngram           a question of train contains all rare 8-grams of words of a test question, for
                    example because it quotes it in a longer text (between two lists only)
    number_swapped  the same except for the numbers: not a leak, but a related question

The text of a multiple-choice question includes its options, so other options make another question.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from pipeline.data.problems import (
    GENERATED,
    available_splits,
    data_folder,
    read_problems,
    stream_problems,
)
from pipeline.data.reasoning_gym_tasks import PREFIX
from pipeline.data.registry import SOURCES
from pipeline.records import Problem

Pair = tuple[int, int]

NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")
WORD = re.compile(r"[a-z]+|\d+(?:\.\d+)?|[-+*/^=<>]")
IDLE_SPACE = re.compile(r" (?=\W)|(?<=\W) ")  # a single space that is not between two words
IDLE_BRACES = re.compile(r"\{(\w)\}")  # x^{2} is x^2
# Commands that only change how a formula looks.
IDLE_LATEX = re.compile(r"\\(?:left|right|displaystyle)(?![a-z])|\\[,!;: ]|\$|\\[()\[\]]")
FRACTIONS = re.compile(r"\\[dt]frac(?![a-z])")
WORDS_IN_A_ROW = 8
FEWEST_NGRAMS = 4
COMMON = 5  # an n-gram in more questions than this is part of a template


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """Pairs of positions: (first one, its repeat) in a list, (train, test) between two."""

    exact: list[Pair] = field(default_factory=list)
    normalised: list[Pair] = field(default_factory=list)  # and not exact
    ngram: list[Pair] = field(default_factory=list)  # and not normalised
    number_swapped: list[Pair] = field(default_factory=list)  # and none of the others

    def counts(self) -> dict[str, int]:
        """{degree: number of pairs}."""
        return {name: len(pairs) for name, pairs in vars(self).items()}


def duplicates(problems: Sequence[Problem]) -> Overlap:
    """Every problem that repeats an earlier one, as (position of the first, its own position).

    >>> twice = [Problem(question=q, answer="5") for q in ("2 + 3?", "2 +  3?", "2 + 9?")]
    >>> duplicates(twice).counts()
    {'exact': 0, 'normalised': 1, 'ngram': 0, 'number_swapped': 1}
    """
    firsts: list[dict[str, int]] = [{} for _ in DEGREES]
    overlap = Overlap()
    for position, problem in enumerate(problems):
        found = _closest(problem.question, firsts)
        if found is not None:
            degree, first = found
            getattr(overlap, degree).append((first, position))
        _add_first(problem.question, position, firsts)
    return overlap


class LeakFinder:
    """An index of test questions that finds the one a problem repeats or contains."""

    def __init__(self, test: Sequence[Problem]) -> None:
        self.firsts: list[dict[str, int]] = [{} for _ in DEGREES]
        for position, problem in enumerate(test):
            _add_first(problem.question, position, self.firsts)
        self.ngrams = NgramIndex([problem.question for problem in test])

    def find(self, problem: Problem) -> tuple[str, int] | None:
        """(degree, position of the test question), or None if it overlaps with none."""
        found = _closest(problem.question, self.firsts)
        if found is None or found[0] == "number_swapped":
            inside = self.ngrams.find(problem.question)
            return found if inside is None else ("ngram", inside)
        return found

    def holds(self, problem: Problem) -> bool:
        """Whether the problem leaks a test question; other numbers make it no leak."""
        found = self.find(problem)
        return found is not None and found[0] != "number_swapped"


def shared(train: Sequence[Problem], test: Sequence[Problem]) -> Overlap:
    """Every problem of train whose question occurs in test, as (position in train, in test)."""
    finder, overlap = LeakFinder(test), Overlap()
    for position, problem in enumerate(train):
        found = finder.find(problem)
        if found is not None:
            degree, in_test = found
            getattr(overlap, degree).append((position, in_test))
    return overlap


def without_overlap(
    train: Sequence[Problem], test: Sequence[Problem]
) -> tuple[list[Problem], list[Problem]]:
    """(kept, removed) problems of train; removed are exact, normalised and n-gram overlaps.

    Number-swapped questions are kept: "2 + 3?" is no leak of "2 + 9?". `shared` lists them.
    """
    overlap = shared(train, test)
    leaks = {position for position, _ in (*overlap.exact, *overlap.normalised, *overlap.ngram)}
    kept = [problem for i, problem in enumerate(train) if i not in leaks]
    removed = [problem for i, problem in enumerate(train) if i in leaks]
    return kept, removed


# A data card compares every split with every other, so each question is normalised many times.
@lru_cache(maxsize=2**17)
def normalised(question: str) -> str:
    """The question in lower case and one notation, to compare it with others.

    Whitespace only between two words, no braces around a single character, one command for
    fractions, no delimiters around formulas.

    >>> normalised(" What  is\\n$x^{2} - \\dfrac{1}{2}$? ")
    'what is x^2-\\\\frac12?'
    """
    plain = IDLE_LATEX.sub(" ", FRACTIONS.sub(r"\\frac", question.lower()))
    return IDLE_BRACES.sub(r"\1", IDLE_SPACE.sub("", " ".join(plain.split())))


@lru_cache(maxsize=2**17)
def masked_numbers(question: str) -> str:
    """The normalised question with every number replaced by "#".

    >>> masked_numbers("Is 1,234.5 > 7?")
    'is #>#?'
    """
    return NUMBER.sub("#", normalised(question))


class NgramIndex:
    """An index of questions by their rare n-grams of words."""

    def __init__(self, questions: Sequence[str]) -> None:
        holders: dict[int, list[int]] = {}
        for position, question in enumerate(questions):
            for ngram in _ngrams(question):
                holders.setdefault(ngram, []).append(position)
        self.holders = {n: where for n, where in holders.items() if len(where) <= COMMON}
        self.sizes = Counter(where for found in self.holders.values() for where in found)

    def find(self, text: str) -> int | None:
        """The position of the first question that a text contains, or None.

        >>> question = "Ann has nine red hens and Bob has two more hens than Ann has, how many?"
        >>> NgramIndex([question]).find(f"Once: {question} Tell me"), NgramIndex([]).find(question)
        (0, None)
        """
        hits = Counter(where for n in _ngrams(text) for where in self.holders.get(n, ()))
        found = [
            where
            for where, hit in hits.items()
            if self.sizes[where] >= FEWEST_NGRAMS and hit == self.sizes[where]
        ]
        return min(found, default=None)


def _ngrams(question: str) -> set[int]:
    """Hashes of the n-grams; numbers and signs are words, so number-swapped questions share few."""
    words = WORD.findall(question.lower())
    rows = zip(*(words[i:] for i in range(WORDS_IN_A_ROW)), strict=False)
    return {hash(row) for row in rows}


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


def _add_first(question: str, position: int, firsts: list[dict[str, int]]) -> None:
    for key, first in zip(DEGREES.values(), firsts, strict=True):
        first.setdefault(key(question), position)


@dataclass(frozen=True)
class Decontaminated:
    """The result of `decontaminate`."""

    kept: list[Problem]
    removed: dict[str, int]  # "math/test" -> rows with an exact, normalised or n-gram overlap
    twins: int  # kept rows that differ from a held-out question in their numbers only
    suites: list[str]  # the held-out splits that were compared


def held_out_problems(
    names: Sequence[str], data_root: str | Path | None = None
) -> Iterator[tuple[str, list[Problem]]]:
    """("gsm8k/test", its problems) of every held-out split to compare data sets `names` with."""
    for name in GENERATED:
        yield f"{name}/test", read_problems(name, "test").problems
    for name in names:
        if name.startswith(PREFIX):
            yield f"{name}/test", read_problems(name, "test").problems
    if all(name in GENERATED or name.startswith(PREFIX) for name in names):
        return
    seen = set()
    for name in _readable(names, data_root):
        for split in available_splits(name, data_root):
            place = (SOURCES[name].folder, split)
            if split in _held_out(name, names) and place not in seen:
                seen.add(place)
                yield f"{name}/{split}", list(stream_problems(name, split, data_root))


def decontaminate(
    problems: Sequence[Problem], names: Sequence[str], data_root: str | Path | None = None
) -> Decontaminated:
    """The problems without those that leak a question of an evaluation suite, with counts."""
    suites, origins, held_out = [], [], []
    for origin, found in held_out_problems(names, data_root):
        suites.append(origin)
        held_out += found
        origins += [origin] * len(found)
    overlap = shared(problems, held_out)
    leaks = dict([*overlap.exact, *overlap.normalised, *overlap.ngram])
    removed = dict(sorted(Counter(origins[where] for where in leaks.values()).items()))
    kept = [problem for i, problem in enumerate(problems) if i not in leaks]
    return Decontaminated(kept, removed, len(overlap.number_swapped), suites)


def _held_out(name: str, trained: Sequence[str]) -> tuple[str, ...]:
    """The splits to keep training away from: of a divided data set all rows, or its test part where
    the data set is trained on."""
    source = SOURCES[name]
    if source.divided_by:
        return ("test",) if name in trained else ("all",)
    return source.held_out


def _readable(names: Sequence[str], data_root: str | Path | None) -> list[str]:
    """The data sets with files under the data root; without a data root, those of `names`."""
    local = [name for name, s in SOURCES.items() if not s.hub_only and _has_files(name, data_root)]
    return local or [name for name in names if name in SOURCES]


def _has_files(name: str, data_root: str | Path | None) -> bool:
    return data_folder(data_root) is not None and bool(available_splits(name, data_root))
