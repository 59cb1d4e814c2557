"""Frozen test sets by name: source, number of rows, kind of answer.

Accuracies are only comparable on the same problems: if the data has another number of rows or other
questions and answers than the suite, the evaluation stops with an error.

python -m eval.suites [--data_root DIR] lists the suites with a fingerprint of their problems.
Without a data root nothing is downloaded, unless --download true asks for it.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

from transformers.hf_argparser import HfArg

from pipeline.cli import CommandParser
from pipeline.config import OwnDataConfig, check_types
from pipeline.data import (
    GENERATED,
    ReadReport,
    available_splits,
    is_own_data,
    read_problems,
)
from pipeline.data.problems import data_folder
from pipeline.data.registry import SOURCES
from pipeline.data.row_files import file_format
from pipeline.records import Problem
from pipeline.runtime import one_line_errors


@dataclass(frozen=True)
class Suite:
    """One frozen set of test problems."""

    name: str
    source: str  # name of the data set, as in load_problems
    split: str
    size: int  # rows of the split, before unusable ones are dropped
    how: str  # kind of problem and of answer
    fingerprint: str = ""  # of its problems in sorted order; "" where it is not known

    @property
    def part_of(self) -> str:
        """The suite that has all rows of this one, or ""."""
        source = SOURCES.get(self.source)
        return self.source if source and source.divided_by and self.split != "all" else ""


def read_suite(
    name: str,
    data_root: str | None = None,
    limit: int | None = None,
    levels: str = "",
    own: OwnDataConfig | None = None,
) -> ReadReport:
    """The problems of a suite, or of the user's own data, and the number of rows read.

    Args:
        name: a suite, or a file, a folder saved by `datasets`, or a Hub id, whose columns and split
            are in `own`; the default split is test
        limit: number of problems, evenly spread over the suite, because several suites are sorted
            by kind or level
        levels: comma-separated levels to keep, by default all

    Raises:
        ValueError: unknown suite or level, or other data than the suite's.
    """
    suite = find_suite(name)
    report = read_problems(suite.source, suite.split, data_root, own=own)
    if is_own_data(name):
        dropped = ", ".join(f"{rows} {reason}" for reason, rows in report.dropped.items())
        print(f"{report.note}\n" * bool(report.note), end="")
        print(f"{name}: {report.rows_read:,} rows read, dropped: {dropped or 'none'}")
    elif report.rows_read != suite.size:
        raise ValueError(
            f"suite {name} has {suite.size} rows, but {suite.source}/{suite.split} has "
            f"{report.rows_read}: check the data folder against the data set's own test split"
        )
    found = fingerprint(sorted(report.problems, key=lambda p: (p.question, p.answer)))
    if suite.fingerprint and found != suite.fingerprint:
        raise ValueError(
            f"suite {name} has the fingerprint {suite.fingerprint}, but the questions and answers "
            f"of {suite.source}/{suite.split} have {found}: take the data set's own test split, or "
            "measure these rows as your own data with --suite FILE"
        )
    return replace(report, problems=spread(_of_levels(report.problems, levels), limit))


def find_suite(name: str) -> Suite:
    """The suite of that name, or the user's own data as one; ValueError with the nearest name."""
    if is_own_data(name):
        return Suite(name, name, "test", 0, "your own data")
    if name not in SUITES:
        near = get_close_matches(name, SUITES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(SUITES))}"
        raise ValueError(
            f"suite={name!r} does not exist: {hint}; your own data is a path to a .jsonl, .json, "
            ".csv or .parquet file, or user/name on the Hub"
        )
    return SUITES[name]


def training_rows(name: str, data_root: str | None = None) -> Callable[[int], list[Problem]] | None:
    """A function of N: the first N training rows of a suite's data set; None where it has none."""
    suite = find_suite(name)
    has_rows = suite.source in GENERATED or "train" in getattr(
        SOURCES.get(suite.source), "splits", ()
    )
    if not has_rows:
        return None

    def first(number: int) -> list[Problem]:
        if suite.split == "all":
            print(f"{name} contains the rows that --few_shot N takes; {name}_test does not")
        return read_problems(suite.source, "train", data_root, number).problems

    return first


def suite_label(name: str) -> str:
    """The name of a suite in metrics; of a file, without its folder, which others need not know.

    >>> suite_label("gsm8k"), suite_label("/home/ann/rows.jsonl"), suite_label("user/name")
    ('gsm8k', 'rows.jsonl', 'user/name')
    """
    return Path(name).name if file_format(name) or Path(name).is_dir() else name


def _of_levels(problems: list[Problem], levels: str) -> list[Problem]:
    wanted = {level.strip() for level in levels.split(",")} - {""}
    known = {problem.level for problem in problems}
    if not wanted <= known:
        raise ValueError(
            f"levels={levels!r}: the suite has no {', '.join(sorted(wanted - known))}; it has "
            f"{', '.join(sorted(known))}"
        )
    return [problem for problem in problems if not wanted or problem.level in wanted]


def spread(problems: list[Problem], limit: int | None) -> list[Problem]:
    """`limit` problems at equal distances, starting with the first; all for None.

    >>> [p.id for p in spread([Problem(question="", answer="", id=i) for i in "abcdef"], 3)]
    ['a', 'c', 'e']
    """
    if limit is None or limit >= len(problems):
        return problems
    return [problems[i * len(problems) // limit] for i in range(limit)]


def find_available_suites(data_root: str | None = None) -> tuple[list[str], dict[str, str]]:
    """(suites in the data root, reason for each of the others); without a data root, on the Hub."""
    available, left_out = [], {}
    for name, suite in SUITES.items():
        if suite.source not in GENERATED and SOURCES[suite.source].hub_only:
            left_out[name] = "its licence forbids copies; pass its name to load it from the Hub"
        elif suite.part_of:
            left_out[name] = f"a part of {suite.part_of}; pass its name if you train on the rest"
        elif suite.split in available_splits(suite.source, data_root):
            available.append(name)
        else:
            left_out[name] = f"no {suite.source}/{suite.split} under the data root, or on the Hub"
    return available, left_out


def fingerprint(problems: Sequence[Problem]) -> str:
    """16 hex digits of a SHA-256 of questions and answers: equal for comparable evaluations.

    >>> fingerprint([Problem(question="2 + 3?", answer="5")])
    '64cbc47a6e1e2080'
    """
    content = json.dumps([(p.question, p.answer) for p in problems])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


_NUMBER = "a number, compared as an exact fraction"
_LATEX = "a LaTeX expression, compared as mathematics"
_LETTER = "the letter of one of the options"
_PROGRAM = "a program, run against its tests in a sandbox"

_ALL = (
    Suite(
        "nano", "nano", "test", 600, f"generated arithmetic, 100 of each of six kinds; {_NUMBER}"
    ),
    Suite(
        "nano_hard", "nano_hard", "test", 500, f"generated arithmetic with more steps; {_NUMBER}"
    ),
    Suite("nano5", "nano5", "test", 600, f"generated word problems of five steps; {_NUMBER}"),
    Suite("o1nano", "o1nano", "test", 400, f"one step, two-digit numbers, in words; {_NUMBER}"),
    Suite("quadratics", "quadratics", "test", 300, "quadratic equations; all roots, or none"),
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
    Suite("prosqa", "prosqa", "test", 500, "which of two follows from generated facts"),
    Suite("bbh", "bbh", "test", 6511, "BIG-Bench Hard, 27 tasks; the target as written"),
    Suite("multiarith", "multiarith", "all", 600, f"two-step word problems; {_NUMBER}"),
    Suite("asdiv", "asdiv", "all", 2305, f"one- and two-step word problems; {_NUMBER}"),
    Suite("mawps", "mawps", "all", 1397, f"one-step word problems; {_NUMBER}"),
    Suite("multiarith_test", "multiarith", "test", 117, f"a fifth of multiarith; {_NUMBER}"),
    Suite("asdiv_test", "asdiv", "test", 436, f"a fifth of asdiv; {_NUMBER}"),
    Suite("mawps_test", "mawps", "test", 246, f"a fifth of mawps; {_NUMBER}"),
    Suite("aqua_rat", "aqua_rat", "test", 254, f"algebra with five options; {_LETTER}"),
    Suite("gpqa_diamond", "gpqa_diamond", "test", 198, f"graduate science, gated; {_LETTER}"),
    Suite("humaneval", "humaneval", "test", 164, f"Python functions; {_PROGRAM}"),
    Suite("mbpp", "mbpp", "test", 500, f"Python functions; {_PROGRAM}"),
    Suite("bbq", "bbq", "test", 11956, f"social bias, six of eleven categories; {_LETTER}"),
)
# Fingerprints of the problems in sorted order; gpqa_diamond's is not known.
_FINGERPRINTS = {
    "nano": "040254fcb0c89db8",
    "nano_hard": "d90f54e71056c499",
    "nano5": "b0dfab75aac70fe1",
    "o1nano": "f0b18ae2253a5cb5",
    "quadratics": "8d2033d218ba3d4c",
    "gsm8k": "679f50aa36753f39",
    "math": "a1b68652740ed7cb",
    "math500": "ad1ae87cbaca8ce2",
    "aime24": "f279aed3e2f5ed31",
    "amc23": "8b3ecab8c2e77539",
    "arc_challenge": "2eeda9bd3a97c484",
    "arc_easy": "2a4a2456aef69916",
    "pubmedqa": "e67a47d6f94f7c6e",
    "commonsense_qa": "a2343800ee2fbc4d",
    "knights_knaves": "ad921ce2ea1aaaea",
    "prosqa": "cea88cf0e07a385c",
    "bbh": "6010d963cde83e0d",
    "multiarith": "07472036248ce25c",
    "asdiv": "df280390c1e188c8",
    "mawps": "fe3c965484d7800b",
    "multiarith_test": "fdb80b1bec0ac686",
    "asdiv_test": "4bc3618d9859a29d",
    "mawps_test": "a506395019c659c4",
    "aqua_rat": "14190a640d2458c2",
    "humaneval": "7d07a40c5e9699de",
    "mbpp": "561189b7066670ca",
    "bbq": "bf95ff7daf26be6a",
}
SUITES: dict[str, Suite] = {
    suite.name: replace(suite, fingerprint=_FINGERPRINTS.get(suite.name, "")) for suite in _ALL
}


@dataclass(kw_only=True)
class SuitesArguments:
    """Where the suites are."""

    data_root: str | None = HfArg(
        default=None, help="folder of NAME/SPLIT.jsonl.gz; default: $THINKHEAD_DATA"
    )
    download: bool = HfArg(default=False, help="without a data root: read the suites on the Hub")

    def __post_init__(self) -> None:
        check_types(self)


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Print a line per suite: name, source, split, size, fingerprint of its problems."""
    (args,) = CommandParser(SuitesArguments).parse_args_and_config(argv)
    available, left_out = find_available_suites(args.data_root)
    on_hub = data_folder(args.data_root) is None and not args.download
    for name in available:
        suite = SUITES[name]
        if on_hub and suite.source not in GENERATED:
            left_out[name] = (
                f"on the Hub as {SOURCES[suite.source].hub or suite.source}; read it with "
                "--download true, or give --data_root"
            )
            continue
        report = read_suite(name, args.data_root)
        print(
            f"{name:15} {suite.source}/{suite.split} {suite.size} rows, {report.kept} kept, "
            f"{fingerprint(report.problems)}: {suite.how}"
        )
    for name in sorted(left_out, key=list(SUITES).index):
        print(f"{name:15} {SUITES[name].size} rows, left out: {left_out[name]}")


if __name__ == "__main__":
    main()
