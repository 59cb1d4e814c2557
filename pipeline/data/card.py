"""The data card: what a data set is made of, as one JSON-ready record."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from pipeline.data.overlap import duplicates, shared
from pipeline.data.problems import ReadReport

Card = dict[str, Any]


def data_card(reports: dict[str, ReadReport]) -> Card:
    """{"splits": {"gsm8k/train": ...}, "shared": [...]} of reports by "name/split".

    A split has rows_read, kept, dropped by reason with examples, lengths in characters and
    duplicates. `shared` lists the pairs of splits with a question in common, by degree; of a pair,
    it counts the questions of "in" that also stand in "also_in".
    """
    return {
        "splits": {origin: split_card(report) for origin, report in reports.items()},
        "shared": shared_questions(reports),
    }


def split_card(report: ReadReport) -> Card:
    problems = report.problems
    return {
        "rows_read": report.rows_read,
        "kept": report.kept,
        "dropped": report.dropped,
        "dropped_examples": [vars(row) for row in report.examples],
        "characters": {
            "question": lengths([problem.question for problem in problems]),
            "thought": lengths([problem.thought for problem in problems]),
            "answer": lengths([problem.answer for problem in problems]),
        },
        "duplicates": duplicates(problems).counts(),
    }


def lengths(texts: Sequence[str]) -> dict[str, int]:
    """Median and 95th percentile of the lengths in characters, rounded; zeros of no texts.

    >>> lengths(["a", "bb", "cccc"])
    {'median': 2, 'p95': 4}
    """
    characters = [len(text) for text in texts] or [0]
    median, p95 = np.percentile(characters, [50, 95])
    return {"median": round(float(median)), "p95": round(float(p95))}


def shared_questions(reports: dict[str, ReadReport]) -> list[Card]:
    rows = []
    for (one, a), (other, b) in combinations(reports.items(), 2):
        counts = shared(a.problems, b.problems).counts()
        if any(counts.values()):
            rows.append({"in": one, "also_in": other, **counts})
    return rows
