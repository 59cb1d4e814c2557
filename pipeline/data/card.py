"""The data card: rows, lengths, duplicates, private data and overlaps of data sets, as JSON."""

from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from pipeline.data.decontamination import duplicates, shared
from pipeline.data.privacy import privacy_card
from pipeline.data.problems import ReadReport

Card = dict[str, Any]
Lengths = Callable[[Sequence[str]], list[int]]  # tokens of each text


def data_card(reports: dict[str, ReadReport], tokens: Lengths | None = None) -> Card:
    """{"splits": {"gsm8k/train": ...}, "shared": [...]} of reports by "name/split".

    A split has rows_read, kept, dropped by reason with examples, duplicates, counts of
    private data (`privacy_card`), and lengths in characters (also in tokens if `tokens` is given).
    "shared" lists the pairs of splits that have questions in common: how many questions of "in"
    also occur in "also_in", by degree.
    """
    return {
        "splits": {origin: split_card(report, tokens) for origin, report in reports.items()},
        "shared": shared_questions(reports),
    }


def split_card(report: ReadReport, tokens: Lengths | None = None) -> Card:
    """The card of one split, as described in `data_card`."""
    problems = report.problems
    card = {
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
        "privacy": privacy_card(problems),
    }
    if tokens is not None:
        counts = token_counts(report, tokens)
        card["tokens"] = {part: summary(found) for part, found in counts.items()}
    return card


def token_counts(report: ReadReport, tokens: Lengths) -> dict[str, list[int]]:
    """{"question": tokens of each, "thought": ..., "answer": ...}, without empty texts."""
    parts = {
        part: [text for p in report.problems if (text := getattr(p, part))]
        for part in ("question", "thought", "answer")
    }
    return {part: tokens(texts) for part, texts in parts.items()}


def plot_lengths(counts: dict[str, dict[str, list[int]]], path: Path) -> None:
    """Save the cumulative distribution of the token lengths, one row of the figure a split."""
    figure, axes = plt.subplots(
        len(counts), 1, figsize=(7, 1.8 * len(counts) + 0.6), squeeze=False, layout="constrained"
    )
    for axis, (origin, parts) in zip(axes[:, 0], counts.items(), strict=True):
        for part, lengths_of_part in parts.items():
            if lengths_of_part:
                axis.ecdf(lengths_of_part, label=part)
        axis.set(title=origin, xscale="log", ylabel="share of rows")
        axis.grid(alpha=0.3)
        axis.legend(loc="lower right")
    axes[-1, 0].set_xlabel("tokens, at most")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def lengths(texts: Sequence[str]) -> dict[str, int]:
    """Median and 95th percentile of the lengths in characters, rounded; zeros of no texts.

    >>> lengths(["a", "bb", "cccc"])
    {'median': 2, 'p95': 4}
    """
    return summary([len(text) for text in texts])


def summary(counts: Sequence[int]) -> dict[str, int]:
    """{"median", "p95"} of the counts, rounded; zeros of an empty list."""
    median, p95 = np.percentile(counts or [0], [50, 95])
    return {"median": round(float(median)), "p95": round(float(p95))}


def shared_questions(reports: dict[str, ReadReport]) -> list[Card]:
    """One row for each pair of splits with questions in common: how many, by degree."""
    rows = []
    for (one, a), (other, b) in combinations(reports.items(), 2):
        counts = shared(a.problems, b.problems).counts()
        if any(counts.values()):
            rows.append({"in": one, "also_in": other, **counts})
    return rows
