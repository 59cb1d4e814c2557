"""Frozen suites by name: which problems, how many, how their answers are read.

A suite is only comparable with itself, so its size is part of its name: where the data at hand has
another number of problems, the evaluation stops instead of publishing a figure that looks the same.

python -m eval.suites [--data_root DIR] lists them with the fingerprint of the problems at hand.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches

from transformers.hf_argparser import HfArg

from pipeline.cli import CommandParser
from pipeline.config import check_types
from pipeline.data import GENERATED, ReadReport, available_splits, read_problems
from pipeline.data.registry import SOURCES
from pipeline.records import Problem
from pipeline.runtime import one_line_errors


@dataclass(frozen=True)
class Suite:
    """One frozen set of test problems."""

    name: str
    source: str  # what load_problems calls it
    split: str
    size: int  # rows of the split; one that cannot be used is dropped and reported
    how: str  # what is asked and what counts as right


def read_suite(
    name: str, data_root: str | None = None, limit: int | None = None, levels: str = ""
) -> ReadReport:
    """All problems of a suite, or `limit` of them evenly spread over it, with the rows read.

    Evenly, because several suites are sorted by kind or level: their first 100 are all alike.
    `levels` leaves only those named, separated by commas.
    """
    suite = find_suite(name)
    report = read_problems(suite.source, suite.split, data_root)
    if report.rows_read != suite.size:
        raise ValueError(
            f"suite {name} is frozen at {suite.size} rows, but {suite.source}/{suite.split} has "
            f"{report.rows_read}: check the data folder against the data set's own test split"
        )
    return replace(report, problems=spread(_of_levels(report.problems, levels), limit))


def find_suite(name: str) -> Suite:
    """The suite of that name; ValueError with the nearest name for any other."""
    if name not in SUITES:
        near = get_close_matches(name, SUITES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(SUITES))}"
        raise ValueError(f"no suite is called {name!r}: {hint}")
    return SUITES[name]


def _of_levels(problems: list[Problem], levels: str) -> list[Problem]:
    wanted = {level.strip() for level in levels.split(",")} - {""}
    known = {problem.level for problem in problems}
    if not wanted <= known:
        raise ValueError(
            f"levels={levels!r} names {', '.join(sorted(wanted - known))}, and the suite has "
            f"{', '.join(sorted(known))}"
        )
    return [problem for problem in problems if not wanted or problem.level in wanted]


def spread(problems: list[Problem], limit: int | None) -> list[Problem]:
    """`limit` problems at equal distances, the first among them; all of them for None.

    >>> [p.id for p in spread([Problem(question="", answer="", id=i) for i in "abcdef"], 3)]
    ['a', 'c', 'e']
    """
    if limit is None or limit >= len(problems):
        return problems
    return [problems[i * len(problems) // limit] for i in range(limit)]


def held_suites(data_root: str | None = None) -> tuple[list[str], dict[str, str]]:
    """(suites that the data root holds, why not for each of the others); without a data root,
    those that the Hub has."""
    held, left_out = [], {}
    for name, suite in SUITES.items():
        if suite.source not in GENERATED and SOURCES[suite.source].hub_only:
            left_out[name] = "its authors allow no copy to lie about; name it to ask the Hub"
        elif suite.split in available_splits(suite.source, data_root):
            held.append(name)
        else:
            left_out[name] = f"no {suite.source}/{suite.split} under the data root, or on the Hub"
    return held, left_out


def fingerprint(problems: Sequence[Problem]) -> str:
    """What the questions and answers hash to: figures of equal fingerprints are comparable.

    >>> fingerprint([Problem(question="2 + 3?", answer="5")])
    '64cbc47a6e1e2080'
    """
    asked = json.dumps([(p.question, p.answer) for p in problems])
    return hashlib.sha256(asked.encode()).hexdigest()[:16]


_NUMBER = "a number, compared as an exact fraction"
_LATEX = "a LaTeX expression, compared as mathematics"
_LETTER = "the letter of one of the options"
_PROGRAM = "a program, run against its tests in a sandbox"

_ALL = (
    Suite("nano", "nano", "test", 600, f"made-up sums, 100 of each of six kinds; {_NUMBER}"),
    Suite("nano_hard", "nano_hard", "test", 500, f"made-up sums of more steps; {_NUMBER}"),
    Suite("nano5", "nano5", "test", 600, f"made-up stories of five steps; {_NUMBER}"),
    Suite("o1nano", "o1nano", "test", 400, f"one step, two-digit numbers, worded; {_NUMBER}"),
    Suite("gsm8k", "gsm8k", "test", 1319, f"grade-school word problems; {_NUMBER}"),
    Suite("math", "math", "test", 5000, f"competition mathematics, five levels; {_LATEX}"),
    Suite("math500", "math500", "test", 500, f"500 of MATH's test problems; {_LATEX}"),
    Suite("aime24", "aime24", "test", 30, f"AIME 2024 I and II; {_NUMBER}"),
    Suite("amc23", "amc23", "test", 40, f"AMC 12 2023 with numeric answers; {_NUMBER}"),
    Suite("arc_challenge", "arc_challenge", "test", 1172, f"science exams, hard; {_LETTER}"),
    Suite("arc_easy", "arc_easy", "test", 2376, f"science exams, easy; {_LETTER}"),
    Suite("pubmedqa", "pubmedqa", "test", 500, "an abstract and a question; yes, no or maybe"),
    Suite("commonsense_qa", "commonsense_qa", "validation", 1221, f"five options; {_LETTER}"),
    Suite("knights_knaves", "knights_knaves", "test", 250, "who lies; every role must match"),
    Suite("prosqa", "prosqa", "test", 500, "which of two follows from made-up facts"),
    Suite("bbh", "bbh", "test", 6511, "BIG-Bench Hard, 27 tasks; the target as written"),
    Suite("multiarith", "multiarith", "all", 600, f"two-step word problems; {_NUMBER}"),
    Suite("asdiv", "asdiv", "all", 2305, f"one- and two-step word problems; {_NUMBER}"),
    Suite("mawps", "mawps", "all", 1397, f"one-step word problems; {_NUMBER}"),
    Suite("aqua_rat", "aqua_rat", "test", 254, f"algebra with five options; {_LETTER}"),
    Suite("gpqa_diamond", "gpqa_diamond", "test", 198, f"graduate science, gated; {_LETTER}"),
    Suite("humaneval", "humaneval", "test", 164, f"Python functions; {_PROGRAM}"),
    Suite("mbpp", "mbpp", "test", 500, f"Python functions; {_PROGRAM}"),
    Suite("bbq", "bbq", "test", 11956, f"social bias, six of eleven categories; {_LETTER}"),
)
SUITES: dict[str, Suite] = {suite.name: suite for suite in _ALL}


@dataclass(kw_only=True)
class SuitesArguments:
    """Where to look for the suites."""

    data_root: str | None = HfArg(default=None, help="folder of NAME/SPLIT.jsonl.gz")

    def __post_init__(self) -> None:
        check_types(self)


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """One line a suite: name, source, split, size, fingerprint of what is here."""
    (args,) = CommandParser(SuitesArguments).parse_args_and_config(argv)
    held, left_out = held_suites(args.data_root)
    for name in held:
        suite, report = SUITES[name], read_suite(name, args.data_root)
        print(
            f"{name:15} {suite.source}/{suite.split} {suite.size} rows, {report.kept} kept, "
            f"{fingerprint(report.problems)}: {suite.how}"
        )
    for name, reason in left_out.items():
        print(f"{name:15} {SUITES[name].size} rows, not here: {reason}")


if __name__ == "__main__":
    main()
