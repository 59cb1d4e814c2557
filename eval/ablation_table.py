"""The cells of an ablation, their paired differences, and what equal tokens buy."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from eval.compare import markdown
from eval.samples import majority_curve
from eval.scaling import sentence
from pipeline.stats.intervals import bounded_mean
from pipeline.stats.paired import paired_bootstrap

COLUMNS = ("single", "vote")

Rows = Sequence[Mapping[str, Any]]  # of eval.samples, or of eval.run


@dataclass(frozen=True)
class Row:
    """A variant: which model answers, and by which strategy in either column."""

    name: str
    model: str
    single: str
    vote: str


@dataclass(frozen=True)
class Cell:
    """How one row does in one column."""

    right_Q: list[float]  # 0 or 1, or the share of right samples of a question
    tokens: float  # completion tokens a question
    strategy: str


def from_samples(rows: Rows, strategy: str) -> Cell:
    """One sample, or the vote of all of them, in the order they were drawn."""
    tokens_QG = [[s["tokens"] for s in row["samples"]] for row in rows]
    if strategy == "sample":
        right_Q = [float(np.mean([s["correct"] for s in row["samples"]])) for row in rows]
        return Cell(right_Q, float(np.mean(np.concatenate(tokens_QG))), strategy)
    n = min(map(len, tokens_QG))
    right_Q = majority_curve(rows, [n])[:, 0].tolist()
    return Cell(right_Q, float(np.mean([sum(row) for row in tokens_QG])), f"consensus@{n}")


def from_records(rows: Rows, strategy: str) -> Cell:
    usages = [row["usage"] for row in rows]
    tokens = float(np.mean([u["reasoning_tokens"] + u["visible_tokens"] for u in usages]))
    return Cell([float(row["correct"]) for row in rows], tokens, strategy)


def table_figures(
    rows: Sequence[Row], cells: Mapping[tuple[str, str], Cell], samples: Mapping[str, Rows]
) -> list[dict[str, Any]]:
    """Every cell with its interval, its paired difference to the first row, and what a plain vote
    of the row's model reaches with the tokens the first row spends."""
    figures = []
    for row in rows:
        found: dict[str, Any] = {"name": row.name, "model": row.model}
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
        figures.append(found)
    return figures


def _equal_tokens(full: Cell, rows: Rows) -> dict[str, Any]:
    """A plain vote of as many samples as the first row's tokens pay for, and what the first row
    has more than that on the same questions."""
    sizes = [[s["tokens"] for s in row["samples"]] for row in rows]
    most = min(map(len, sizes))
    asked = round(full.tokens / float(np.mean(np.concatenate(sizes))))
    k = min(max(1, asked), most)
    right_Q = majority_curve(rows, [k])[:, 0].tolist()
    gain = paired_bootstrap(right_Q, full.right_Q)
    return asdict(bounded_mean(right_Q)) | {"k": k, "asked": asked, "full_gains": asdict(gain)}


def tell(title: str, figures: Sequence[dict[str, Any]], curves: Mapping[str, Any]) -> str:
    """The ablation in Markdown."""
    laws = "\n".join(f"- {model}: {sentence(found)}" for model, found in curves.items())
    return (
        f"# Ablation on {title}\n\n"
        "Accuracy in % [95% interval] by strategy · completion tokens a question; differences are "
        "paired over the same problems. The plain vote is that of the row's own model.\n\n"
        f"{markdown(grid(figures))}\n\n## A vote's accuracy against its tokens\n\n{laws}\n\n"
        "![Scaling](scaling.png)\n"
    )


def grid(figures: Sequence[dict[str, Any]]) -> list[list[str]]:
    """The table, header first; "-" where a strategy is not there."""
    header = ["variant"]
    for column in ("one answer", "vote"):
        header += [column, "to full", "plain vote at full's tokens", "full above that"]
    body = [[f["name"], *(c for column in COLUMNS for c in _cells(f.get(column)))] for f in figures]
    return [header, *body]


def _cells(found: dict[str, Any] | None) -> list[str]:
    if found is None:
        return ["-", "-", "-", "-"]
    gain, equal = found.get("to_full"), found.get("equal_tokens")
    return [
        f"{_percent(found)} by {found['strategy']} · {found['tokens']:.0f}",
        _signed(gain) if gain else "-",
        _equal(equal) if equal else "-",
        _signed(equal["full_gains"]) if equal else "-",
    ]


def _equal(e: Mapping[str, Any]) -> str:
    more = f", the tokens pay for {e['asked']}" if e["asked"] > e["k"] else ""
    return f"{_percent(e)}, k={e['k']}{more}"


def _percent(e: Mapping[str, float]) -> str:
    return f"{100 * e['mean']:.1f} [{100 * e['low']:.1f}, {100 * e['high']:.1f}]"


def _signed(e: Mapping[str, float]) -> str:
    return f"{100 * e['mean']:+.1f} [{100 * e['low']:+.1f}, {100 * e['high']:+.1f}]"
