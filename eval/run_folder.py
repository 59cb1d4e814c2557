"""A finished evaluation: its records, metrics.json, and the figures that follow from records."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.metrics.scores import mean_tokens
from eval.row_types import Metrics, Record
from pipeline.grading.arithmetic import equations_in
from pipeline.runtime import parse_object, read_object
from pipeline.stats.intervals import accuracy

REMEDY = "delete its folder and run the command again"  # for a result that is damaged


def read_run(path: Path, of: str = "run") -> tuple[Any, list[Any]]:
    """(metrics, records) of a finished evaluation, of the types that its command writes.

    Args:
        of: "run" for a folder of eval.run, "samples" for one of eval.samples

    Raises:
        FileNotFoundError: the folder has no metrics.json or records.jsonl.
        ValueError: a file is damaged, records are missing, or the folder is of the other command.
    """
    metrics = read_object(path / "metrics.json", REMEDY)
    if ("accuracy" in metrics) != (of == "run"):
        raise ValueError(f"{path} was not written by eval.{of}; give a folder that was")
    file = path / "records.jsonl"
    records = [parse_object(file, line, REMEDY) for line in file.read_bytes().split(b"\n") if line]
    if metrics.get("n", len(records)) != len(records):
        raise ValueError(
            f"{file} has {len(records)} records, and metrics.json counts {metrics['n']}; {REMEDY}"
        )
    return metrics, records


def runs_below(folder: Path) -> list[tuple[Metrics, list[Record]]]:
    """(metrics, records) of every folder of eval.run in a folder and below it, by path.

    Folders of other commands, such as eval.samples, are left out.

    Raises:
        FileNotFoundError: there is none.
        ValueError: a file is damaged.
    """
    paths = sorted(folder.rglob("metrics.json"))
    runs = [path.parent for path in paths if "accuracy" in read_object(path, REMEDY)]
    if not runs:
        raise FileNotFoundError(
            f"{folder} holds no metrics.json of eval.run: run python -m eval.run first"
        )
    return [read_run(path) for path in runs]


def problem_keys(records: Sequence[Record]) -> list[tuple[str, str, str]]:
    """(id, question, expected answer) of every record; only runs with equal keys can be paired."""
    return [(row["id"], row["question"], row["expected"]) for row in records]


_KINDS = ("prompt", "reasoning", "visible")


def scores(rows: Sequence[Record]) -> dict[str, object]:
    """The content of metrics.json that follows from the records."""
    usages = [row["usage"] for row in rows]
    completion_Q = [u["reasoning_tokens"] + u["visible_tokens"] for u in usages]
    spent = {kind: sum(u[f"{kind}_tokens"] for u in usages) for kind in _KINDS}
    cost = mean_tokens(completion_Q)
    levels = sorted({row["level"] for row in rows})
    return {
        **_share_correct(rows),
        "by_level": {
            level: _share_correct([row for row in rows if row["level"] == level])
            for level in levels
        },
        "correct_traces": _share_of_correct_traces(rows),
        "last_number": sum(bool(row.get("last_number")) for row in rows),
        "finished": sum(row["finish_reason"] == "stop" for row in rows) / len(rows),
        "tokens": spent | {"total": sum(spent.values())},
        "completion_tokens_per_question": {"mean": cost.mean, "ci95": [cost.low, cost.high]},
        "seconds": sum(row["seconds"] for row in rows),
    }


def summary(metrics: Metrics) -> str:
    """One line: accuracy with interval, n, tokens per question, share of finished completions,
    time, and the number of answers without a verdict if there are any."""
    low, high = metrics["ci95"]
    missing = f", {metrics['no_verdict']} without a verdict" if metrics.get("no_verdict") else ""
    return (
        f"{metrics['suite']} {metrics['strategy']}: accuracy {metrics['accuracy']:.1%} "
        f"[{low:.1%}, {high:.1%}], n={metrics['n']}, "
        f"{metrics['completion_tokens_per_question']['mean']:.1f} tokens per question, "
        f"{metrics['finished']:.1%} finished, {metrics['seconds']:.0f} s{missing}"
    )


def trace_is_correct(row: Record) -> bool | None:
    """Whether all equations in a record's thought are correct; None if it has none.

    >>> trace_is_correct({"reasoning": "1+1=2"}), trace_is_correct({"reasoning": "1+1=3"})
    (True, False)
    """
    equations = list(equations_in(row["reasoning"]))
    return all(each.holds for each in equations) if equations else None


def _share_of_correct_traces(rows: Sequence[Record]) -> dict[str, object] | None:
    """Share of traces with all equations correct, of those with an equation; None without any."""
    correct = [found for found in map(trace_is_correct, rows) if found is not None]
    if not correct:
        return None
    share = accuracy(correct)
    return {"n": len(correct), "share": share.mean, "ci95": [share.low, share.high]}


def _share_correct(rows: Sequence[Record]) -> dict[str, object]:
    """Accuracy over all rows; one without a verdict counts as wrong, never as left out."""
    share = accuracy([row["correct"] for row in rows])
    return {
        "n": len(rows),
        "no_verdict": sum(row.get("no_verdict", False) for row in rows),
        "accuracy": share.mean,
        "ci95": [share.low, share.high],
    }
