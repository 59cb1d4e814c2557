"""Find questions that occur more than once, within a list of problems and between two lists.

Four degrees; a pair counts at the closest one only:

    exact           the same characters
    normalised      the same except for case, whitespace, redundant braces and variants of LaTeX;
                    digits and signs count
    ngram           a question of train contains all rare 8-grams of words of a test question, for
                    example because it quotes it in a longer text (between two lists only)
    number_swapped  the same except for the numbers: not a leak, but a related question

The text of a multiple-choice question includes its options, so other options make another question.
Of a conversation, every turn of the user in train is compared.
"""

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from zipfile import BadZipFile

from pipeline.data.leak_index import FirstQuestions, LeakFinder
from pipeline.data.problems import (
    GENERATED,
    available_splits,
    data_folder,
    read_problems,
    stream_problems,
)
from pipeline.data.reasoning_gym_tasks import PREFIX
from pipeline.data.registry import SOURCES
from pipeline.progress import Progress
from pipeline.records import Problem
from pipeline.runtime import environment

Pair = tuple[int, int]
SLOW = 5000  # questions whose index takes seconds, and is cached
CACHED = 4  # indexes that are kept


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
    firsts, overlap = FirstQuestions(), Overlap()
    for position, problem in enumerate(problems):
        found = firsts.find(problem.question)
        if found is not None:
            degree, first = found
            getattr(overlap, degree).append((first, position))
        firsts.add(problem.question, position)
    return overlap


def shared(train: Sequence[Problem], test: Sequence[Problem]) -> Overlap:
    """Every problem of train whose question occurs in test, as (position in train, in test)."""
    return _overlap(train, LeakFinder(test))


def _overlap(train: Sequence[Problem], finder: LeakFinder) -> Overlap:
    overlap = Overlap()
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
    for name, split in _held_out_splits(names, data_root):
        if name in SOURCES and name not in GENERATED:
            yield f"{name}/{split}", list(stream_problems(name, split, data_root))
        else:
            yield f"{name}/{split}", read_problems(name, split).problems


def held_out_index(
    names: Sequence[str], data_root: str | Path | None = None
) -> tuple[LeakFinder, list[str]]:
    """(index of all held-out questions, the split of each), from the cache if no file has changed.

    The cache is $THINKHEAD_CACHE, else ~/.cache/thinkhead; nothing of the Hub is in it.
    """
    splits = list(_held_out_splits(names, data_root))
    if all(name in GENERATED for name, _ in splits):
        generated, made_origins = _generated_index(tuple(splits))
        return generated, [*made_origins]
    path = _cache_file(splits, data_root)
    if path is not None and path.is_file():
        with suppress(OSError, ValueError, KeyError, BadZipFile):
            return LeakFinder.load(path)
    origins: list[str] = []
    held_out: list[Problem] = []
    for origin, found in held_out_problems(names, data_root):
        held_out += found
        origins += [origin] * len(found)
    finder = LeakFinder(_with_bar(held_out) if len(held_out) > SLOW else held_out)
    if path is not None and len(held_out) > SLOW:
        with suppress(OSError):
            finder.save(path, origins)
            for old in sorted(path.parent.glob("*.npz"), key=_modified)[:-CACHED]:
                old.unlink()
    return finder, origins


@lru_cache(maxsize=1)
def _generated_index(splits: tuple[tuple[str, str], ...]) -> tuple[LeakFinder, tuple[str, ...]]:
    """(index, origins) of generated splits, which are the same whenever they are made."""
    found = [(f"{n}/{split}", read_problems(n, split).problems) for n, split in splits]
    finder = LeakFinder([problem for _, problems in found for problem in problems])
    return finder, tuple(origin for origin, problems in found for _ in problems)


def decontaminate(
    problems: Sequence[Problem], names: Sequence[str], data_root: str | Path | None = None
) -> Decontaminated:
    """The problems without those that leak a question of an evaluation suite, with counts."""
    finder, origins = held_out_index(names, data_root)
    overlap = _overlap(problems, finder)
    leaks = dict([*overlap.exact, *overlap.normalised, *overlap.ngram])
    removed = dict(sorted(Counter(origins[where] for where in leaks.values()).items()))
    kept = [problem for i, problem in enumerate(problems) if i not in leaks]
    suites = list(dict.fromkeys(origins))
    return Decontaminated(kept, removed, len(overlap.number_swapped), suites)


def _held_out_splits(
    names: Sequence[str], data_root: str | Path | None
) -> Iterator[tuple[str, str]]:
    """(data set, split) of every held-out split to compare data sets `names` with."""
    yield from ((name, "test") for name in GENERATED)
    yield from ((name, "test") for name in names if name.startswith(PREFIX))
    if all(name in GENERATED or name.startswith(PREFIX) for name in names):
        return
    seen = set()
    for name in _readable(names, data_root):
        for split in available_splits(name, data_root):
            place = (SOURCES[name].folder, split)
            if split in _held_out(name, names) and place not in seen:
                seen.add(place)
                yield name, split


def _cache_file(splits: Sequence[tuple[str, str]], data_root: str | Path | None) -> Path | None:
    """The cache file of an index, named by all that decides it; None for data on the Hub."""
    root, parts = data_folder(data_root), []
    for name, split in splits:
        parts.append(f"{name}/{split}")
        if name in SOURCES and name not in GENERATED:
            files = sorted((root / SOURCES[name].folder).glob("*.jsonl*")) if root else []
            if not files:
                return None
            stats = [(str(file), file.stat()) for file in files]
            parts += [f"{file} {stat.st_size} {stat.st_mtime_ns}" for file, stat in stats]
    code = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    key = sha256("\n".join([sys.version, *parts]).encode() + code).hexdigest()[:24]
    folder = environment("CACHE") or Path.home() / ".cache" / "thinkhead"
    return Path(folder) / "held_out" / f"{key}.npz"


def _with_bar(problems: Sequence[Problem]) -> Iterator[Problem]:
    """The problems, with a bar that counts them."""
    with Progress(len(problems), "indexing evaluation suites", unit="questions") as progress:
        for problem in problems:
            yield problem
            progress.advance(1)


def _modified(path: Path) -> float:
    return path.stat().st_mtime


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
