"""Results of an ablation: cells, paired differences, and a majority vote at equal tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from eval.row_types import Record, SamplesRow, ScalingResult
from eval.samples import majority_curve
from eval.scaling import describe_law
from eval.tables import Table, format_percent, markdown_table
from pipeline.stats.intervals import bounded_mean
from pipeline.stats.paired import paired_bootstrap

COLUMNS = ("single", "vote")

Result = dict[str, Any]  # figures of a row or of a cell, by name


@dataclass(frozen=True)
class Row:
    """A variant: its model, and the search strategy of each column."""

    name: str
    model: str
    single: str
    vote: str


@dataclass(frozen=True)
class Cell:
    """Outcomes and cost of one row in one column."""

    right_Q: list[float]  # 0 or 1, or the share of the question's samples that are right
    tokens: float  # mean completion tokens per question
    strategy: str


def cell_from_samples(rows: Sequence[SamplesRow], strategy: str) -> Cell:
    """Cell of the strategy "sample" (mean over samples) or "consensus" (vote of all of them)."""
    tokens_QG = [[s["tokens"] for s in row["samples"]] for row in rows]
    if strategy == "sample":
        right_Q = [float(np.mean([s["correct"] for s in row["samples"]])) for row in rows]
        return Cell(right_Q, float(np.mean(np.concatenate(tokens_QG))), strategy)
    n = min(map(len, tokens_QG))
    right_Q = majority_curve(rows, [n])[:, 0].tolist()
    return Cell(right_Q, float(np.mean([sum(row) for row in tokens_QG])), f"consensus@{n}")


def cell_from_records(rows: Sequence[Record], strategy: str) -> Cell:
    """Cell of a strategy evaluated by eval.run."""
    usages = [row["usage"] for row in rows]
    tokens = float(np.mean([u["reasoning_tokens"] + u["visible_tokens"] for u in usages]))
    return Cell([float(row["correct"]) for row in rows], tokens, strategy)


def ablation_results(
    rows: Sequence[Row],
    cells: Mapping[tuple[str, str], Cell],
    samples: Mapping[str, Sequence[SamplesRow]],
) -> list[Result]:
    """One entry per row. Each cell has its accuracy with interval, its paired difference to the
    first row, and the accuracy of a majority vote of the row's model at the first row's tokens."""
    results = []
    for row in rows:
        found: Result = {"name": row.name, "model": row.model}
        for column in COLUMNS:
            cell, full = cells.get((row.name, column)), cells.get((rows[0].name, column))
            if cell is None:
                continue
            found[column] = asdict(bounded_mean(cell.right_Q)) | {
                "tokens": cell.tokens,
                "strategy": cell.strategy,
            }
            if full is None:
                continue
            if row is not rows[0]:
                gain = paired_bootstrap(full.right_Q, cell.right_Q)
                found[column]["to_full"] = asdict(gain)
            found[column]["equal_tokens"] = _equal_tokens(full, samples[row.model])
        results.append(found)
    return results


def _equal_tokens(full: Cell, rows: Sequence[SamplesRow]) -> dict[str, object]:
    """A majority vote with about as many tokens as the first row (a rounded number of samples), and
    the paired gain of the first row over it."""
    sizes = [[s["tokens"] for s in row["samples"]] for row in rows]
    affordable = round(full.tokens / float(np.mean(np.concatenate(sizes))))
    k = min(max(1, affordable), *map(len, sizes))
    right_Q = majority_curve(rows, [k])[:, 0].tolist()
    gain = paired_bootstrap(right_Q, full.right_Q)
    return asdict(bounded_mean(right_Q)) | {"k": k, "asked": affordable, "full_gains": asdict(gain)}


def ablation_report(
    title: str, results: Sequence[Result], scaling: Mapping[str, ScalingResult]
) -> str:
    """The ablation in Markdown."""
    laws = "\n".join(f"- {model}: {describe_law(result)}" for model, result in scaling.items())
    return (
        f"# Ablation on {title}\n\n"
        "Accuracy in % [95% interval] by strategy · completion tokens a question; differences are "
        "paired over the same problems. The plain vote is a majority vote of the row's model.\n\n"
        f"{markdown_table(ablation_table(results))}\n\n"
        f"## Accuracy of a majority vote against its tokens\n\n{laws}\n\n"
        "![Scaling](scaling.png)\n"
    )


def ablation_table(results: Sequence[Result]) -> Table:
    """Rows of cells, the header first; "-" where a strategy was not evaluated."""
    header = ["variant"]
    for column in ("one answer", "vote"):
        header += [column, "to full", "plain vote at full's tokens", "full over that vote"]
    body = [[r["name"], *(c for column in COLUMNS for c in _cells(r.get(column)))] for r in results]
    return [header, *body]


def _cells(found: Result | None) -> list[str]:
    if found is None:
        return ["-", "-", "-", "-"]
    gain, equal = found.get("to_full"), found.get("equal_tokens")
    return [
        f"{format_percent(found)} by {found['strategy']} · {found['tokens']:.0f}",
        format_percent(gain, "+") if gain else "-",
        _format_vote(equal) if equal else "-",
        format_percent(equal["full_gains"], "+") if equal else "-",
    ]


def _format_vote(equal: Result) -> str:
    more = f", the tokens pay for {equal['asked']}" if equal["asked"] > equal["k"] else ""
    return f"{format_percent(equal)}, k={equal['k']}{more}"
