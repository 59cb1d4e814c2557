"""An index of evaluation questions that finds the one that a training row repeats or contains.

It is three arrays of hashes and one of n-grams, so that a cache file of it loads in 0.2 s, where
reading and indexing 40,000 questions takes 16 s. Hashes have 64 bits and are the same in every
process.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, wraps
from hashlib import blake2b
from pathlib import Path
from zlib import crc32

import numpy as np

from pipeline.records import Problem

NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")
WORD = re.compile(r"[a-z]+|\d+(?:\.\d+)?|[-+*/^=<>]")
IDLE_SPACE = re.compile(r" (?=\W)|(?<=\W) ")  # a single space that is not between two words
IDLE_BRACES = re.compile(r"\{(\w)\}")  # x^{2} is x^2
# Commands that only change how a formula looks.
IDLE_LATEX = re.compile(r"\\(?:left|right|displaystyle)(?![a-z])|\\[,!;: ]|\$|\\[()\[\]]")
FRACTIONS = re.compile(r"\\[dt]frac(?![a-z])")
WORDS_IN_A_ROW = 8
FEWEST_NGRAMS = 4
LONGEST_CACHED = 4000  # characters
COMMON = 5  # an n-gram in more questions than this is part of a template


def _cached(function: Callable[[str], str]) -> Callable[[str], str]:
    """The function with a cache for questions; a document is longer and would fill the memory."""
    cached = lru_cache(maxsize=2**17)(function)

    @wraps(function)
    def of_text(text: str) -> str:
        return cached(text) if len(text) <= LONGEST_CACHED else function(text)

    return of_text


# A data card compares every split with every other, so each question is normalised many times.
@_cached
def normalised(question: str) -> str:
    """The question in lower case and one notation, to compare it with others.

    Whitespace only between two words, no braces around a single character, one command for
    fractions, no delimiters around formulas.

    >>> normalised(" What  is\\n$x^{2} - \\dfrac{1}{2}$? ")
    'what is x^2-\\\\frac12?'
    """
    plain = IDLE_LATEX.sub(" ", FRACTIONS.sub(r"\\frac", question.lower()))
    return IDLE_BRACES.sub(r"\1", IDLE_SPACE.sub("", " ".join(plain.split())))


@_cached
def masked_numbers(question: str) -> str:
    """The normalised question with every number replaced by "#".

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


class FirstQuestions:
    """The position of the first question of every kind, by degree of likeness."""

    def __init__(self) -> None:
        self.positions: dict[str, dict[int, int]] = {degree: {} for degree in DEGREES}

    def find(self, question: str) -> tuple[str, int] | None:
        """(closest degree, position), or None."""
        for degree, key in DEGREES.items():
            position = self.positions[degree].get(_digest(key(question)))
            if position is not None:
                return degree, position
        return None

    def add(self, question: str, position: int) -> None:
        """Add a question, unless an equal one stands before it."""
        for degree, key in DEGREES.items():
            self.positions[degree].setdefault(_digest(key(question)), position)


@dataclass(frozen=True)
class NgramIndex:
    """An index of questions by their rare n-grams of words.

    Args:
        keys: hashes of n-grams, int64, sorted; one entry for every question that has the n-gram
        holders: the position of that question, int32
        sizes: rare n-grams of every question, int32
    """

    keys: np.ndarray
    holders: np.ndarray
    sizes: np.ndarray

    @classmethod
    def of(cls, questions: Iterable[str]) -> "NgramIndex":
        """The index of these questions."""
        found = [word_ngrams(question) for question in questions]
        keys = np.fromiter((n for ngrams in found for n in ngrams), np.int64)
        holders = np.repeat(np.arange(len(found), dtype=np.int32), [len(n) for n in found])
        order = np.argsort(keys, kind="stable")
        keys, holders = keys[order], holders[order]
        _, groups, counts = np.unique(keys, return_inverse=True, return_counts=True)
        rare = counts[groups] <= COMMON if len(keys) else np.zeros(0, bool)
        sizes = np.bincount(holders[rare], minlength=len(found)).astype(np.int32)
        return cls(keys[rare], holders[rare], sizes)

    def find(self, text: str) -> int | None:
        """The position of the first question that a text contains, or None.

        >>> question = "Ann has nine red hens and Bob has two more hens than Ann has, how many?"
        >>> NgramIndex.of([question]).find(f"Once: {question} Tell me"), NgramIndex.of([]).find("a")
        (0, None)
        """
        ngrams = np.fromiter(word_ngrams(text), np.int64)
        low = np.searchsorted(self.keys, ngrams, "left")
        high = np.searchsorted(self.keys, ngrams, "right")
        spans = [(a, b) for a, b in zip(low.tolist(), high.tolist(), strict=True) if a < b]
        hits = Counter(where for a, b in spans for where in self.holders[a:b].tolist())
        found = [
            where
            for where, hit in hits.items()
            if self.sizes[where] >= FEWEST_NGRAMS and hit == self.sizes[where]
        ]
        return min(found, default=None)


class LeakFinder:
    """An index of test questions that finds the one a problem repeats or contains."""

    def __init__(self, test: Iterable[Problem]) -> None:
        self.firsts = FirstQuestions()
        self.ngrams = NgramIndex.of(self._added(test))

    def _added(self, test: Iterable[Problem]) -> Iterator[str]:
        for position, problem in enumerate(test):
            self.firsts.add(problem.question, position)
            yield problem.question

    def find(self, problem: Problem) -> tuple[str, int] | None:
        """(degree, position of the test question), or None if it overlaps with none.

        The question and every earlier turn of the user are looked up; a leak precedes a question
        with other numbers.
        """
        texts = [problem.question, *(text for role, text in problem.turns if role == "user")]
        overlaps = [found for text in texts if (found := self._find_text(text)) is not None]
        leaks = (found for found in overlaps if found[0] != "number_swapped")
        return next(leaks, overlaps[0] if overlaps else None)

    def _find_text(self, text: str) -> tuple[str, int] | None:
        found = self.firsts.find(text)
        if found is None or found[0] == "number_swapped":
            inside = self.ngrams.find(text)
            return found if inside is None else ("ngram", inside)
        return found

    def holds(self, problem: Problem) -> bool:
        """Whether the problem leaks a test question; other numbers make it no leak."""
        found = self.find(problem)
        return found is not None and found[0] != "number_swapped"

    def save(self, path: Path, origins: Sequence[str]) -> None:
        """Write the index and the origin of every question atomically; no pickle."""
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays = {"origins": np.array(origins, dtype=str), **vars(self.ngrams)}
        for degree, positions in self.firsts.positions.items():
            arrays[f"{degree}_keys"] = np.fromiter(positions.keys(), np.int64)
            arrays[f"{degree}_at"] = np.fromiter(positions.values(), np.int32)
        staged = path.with_suffix(f".{os.getpid()}.tmp.npz")  # others may write at the same time
        np.savez(staged, **arrays)
        staged.replace(path)

    @classmethod
    def load(cls, path: Path) -> tuple["LeakFinder", list[str]]:
        """(index, origins) as `save` wrote them; ValueError or OSError for another file."""
        finder = cls([])
        with np.load(path, allow_pickle=False) as arrays:
            finder.ngrams = NgramIndex(arrays["keys"], arrays["holders"], arrays["sizes"])
            for degree in DEGREES:
                keys, at = arrays[f"{degree}_keys"].tolist(), arrays[f"{degree}_at"].tolist()
                finder.firsts.positions[degree] = dict(zip(keys, at, strict=True))
            return finder, arrays["origins"].tolist()


def word_ngrams(text: str) -> set[int]:
    """64-bit hashes of the n-grams of WORDS_IN_A_ROW words.

    Numbers and signs are words, so number-swapped questions share few.
    """
    words = [_word_hash(word) for word in WORD.findall(text.lower())]
    rows = zip(*(words[i:] for i in range(WORDS_IN_A_ROW)), strict=False)
    return {hash(row) for row in rows}  # of integers: the same in every process


@lru_cache(maxsize=2**17)
def _word_hash(word: str) -> int:
    return crc32(word.encode())


def _digest(text: str) -> int:
    found = blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(found, "little", signed=True)
