"""The questions that evaluation suites hold, and what training rows must not repeat.

Guarded against are the held-out splits of every data set that can be read here: the files under the
data root, or, when reading from the Hub, those of the data sets that are trained on; and the suites
that are made here. Made-up problems are compared with made-up suites only.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.data.overlap import shared
from pipeline.data.problems import (
    GENERATED,
    available_splits,
    data_folder,
    read_problems,
    stream_problems,
)
from pipeline.data.puzzles import PREFIX
from pipeline.data.sources import SOURCES
from pipeline.records import Problem


@dataclass(frozen=True)
class Guarded:
    """Training rows without those that a suite holds."""

    kept: list[Problem]
    removed: dict[str, int]  # "math/test" -> rows; exact, normalised or hidden in a longer text
    twins: int  # kept rows that differ from a held-out one in their numbers only
    suites: list[str]  # what the rows were compared with


def held_out_problems(
    names: Sequence[str], data_root: str | Path | None = None
) -> Iterator[tuple[str, list[Problem]]]:
    """("gsm8k/test", its problems) of every held-out split, for training on data sets `names`."""
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
            if split in SOURCES[name].held_out and place not in seen:
                seen.add(place)
                yield f"{name}/{split}", list(stream_problems(name, split, data_root))


def guard(
    problems: Sequence[Problem], names: Sequence[str], data_root: str | Path | None = None
) -> Guarded:
    """The problems without those that an evaluation suite holds."""
    suites, origins, held_out = [], [], []
    for origin, found in held_out_problems(names, data_root):
        suites.append(origin)
        held_out += found
        origins += [origin] * len(found)
    overlap = shared(problems, held_out)
    leaks = dict([*overlap.exact, *overlap.normalised, *overlap.ngram])
    removed = dict(sorted(Counter(origins[where] for where in leaks.values()).items()))
    kept = [problem for i, problem in enumerate(problems) if i not in leaks]
    return Guarded(kept, removed, len(overlap.number_swapped), suites)


def _readable(names: Sequence[str], data_root: str | Path | None) -> list[str]:
    """The data sets with files under the data root; without one, those that are trained on."""
    local = [name for name, s in SOURCES.items() if not s.hub_only and _has_files(name, data_root)]
    return local or [name for name in names if name in SOURCES]


def _has_files(name: str, data_root: str | Path | None) -> bool:
    return data_folder(data_root) is not None and bool(available_splits(name, data_root))
