"""The folder of one evaluation: settings.json, records.jsonl, metrics.json, run.json.

records.jsonl grows by whole chunks of problems, so an evaluation that was killed continues where it
stopped and ends with the rows it would have had without the kill.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.metrics.scores import mean_tokens
from pipeline.grading.arithmetic import equations_in
from pipeline.runtime import write_json
from pipeline.stats.intervals import accuracy


class RunFolder:
    """Rows of one evaluation on disk; `rows` holds the finished ones, in the order of the problems.

    ValueError when the folder already holds an evaluation with other settings. Nothing is written
    before the first `append`.
    """

    def __init__(self, path: str | Path, settings: dict[str, Any], *, chunk: int, total: int):
        self.path = Path(path)
        self.settings = settings
        _require_same_settings(self.path, settings)
        lines = _finished_lines(self.path / "records.jsonl", chunk=chunk, total=total)
        self.rows = [json.loads(line) for line in lines]
        self._finished_bytes = sum(len(line) + 1 for line in lines)

    def append(self, rows: list[dict[str, Any]]) -> None:
        """One more chunk of rows, on disk before this returns."""
        records = self.path / "records.jsonl"
        if not self.rows:
            self.path.mkdir(parents=True, exist_ok=True)
            write_json(self.path / "settings.json", self.settings)
            records.touch()
        block = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
        with open(records, "r+b") as file:
            file.truncate(self._finished_bytes)  # what a kill left of an unfinished chunk
            file.seek(self._finished_bytes)
            file.write(block)
            file.flush()
            os.fsync(file.fileno())
        self._finished_bytes += len(block)
        self.rows += rows


def read_run(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(metrics, records) of a finished evaluation."""
    metrics = json.loads((path / "metrics.json").read_text(encoding="utf-8"))
    lines = (path / "records.jsonl").read_bytes().split(b"\n")
    return metrics, [json.loads(line) for line in lines if line]


def problem_keys(records: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """(id, question, expected) of every record; runs are paired only if these are equal."""
    return [(row["id"], row["question"], row["expected"]) for row in records]


def _require_same_settings(path: Path, settings: dict[str, Any]) -> None:
    stored = path / "settings.json"
    if not stored.is_file():
        return
    before = json.loads(stored.read_text(encoding="utf-8"))
    for name in sorted(before.keys() | settings.keys()):
        if before.get(name) != settings.get(name):
            raise ValueError(
                f"{path} holds an evaluation with {name}={before.get(name)}, this one has "
                f"{name}={settings.get(name)}: choose another --output_dir or delete that folder"
            )


def _finished_lines(path: Path, *, chunk: int, total: int) -> list[bytes]:
    """Lines of the chunks that were written whole.

    The problems of a chunk share one stream of random numbers, so a chunk cut short by a kill is
    asked again as a whole. Only the last chunk of an evaluation may be shorter.
    """
    if not path.is_file():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]  # behind the last newline nothing is finished
    return lines if len(lines) == total else lines[: len(lines) // chunk * chunk]


_KINDS = ("prompt", "reasoning", "visible")


def scores(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The figures of one evaluation: a pure function of its records."""
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
        "correct_traces": _thoughts_hold(rows),
        "finished": sum(row["finish_reason"] == "stop" for row in rows) / len(rows),
        "tokens": spent | {"total": sum(spent.values())},
        "completion_tokens_per_question": {"mean": cost.mean, "ci95": [cost.low, cost.high]},
        "seconds": sum(row["seconds"] for row in rows),
    }


def summary(metrics: dict[str, Any]) -> str:
    """One line for a person: accuracy with interval, n, tokens a question, share finished, and how
    many answers have no verdict where there are any."""
    low, high = metrics["ci95"]
    missing = f", {metrics['no_verdict']} without a verdict" if metrics.get("no_verdict") else ""
    return (
        f"{metrics['suite']} {metrics['strategy']}: accuracy {metrics['accuracy']:.1%} "
        f"[{low:.1%}, {high:.1%}], n={metrics['n']}, "
        f"{metrics['completion_tokens_per_question']['mean']:.1f} tokens a question, "
        f"{metrics['finished']:.1%} finished, {metrics['seconds']:.0f} s{missing}"
    )


def trace_is_correct(row: dict[str, Any]) -> bool | None:
    """Whether every sum in a record's thought comes out; None without any.

    >>> trace_is_correct({"reasoning": "1+1=2"}), trace_is_correct({"reasoning": "1+1=3"})
    (True, False)
    """
    written = list(equations_in(row["reasoning"]))
    return all(each.holds for each in written) if written else None


def _thoughts_hold(rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Of the thoughts with a written sum, the share in which every sum comes out; None without
    any."""
    sound = [held for held in map(trace_is_correct, rows) if held is not None]
    if not sound:
        return None
    share = accuracy(sound)
    return {"n": len(sound), "share": share.mean, "ci95": [share.low, share.high]}


def _share_correct(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A row without a verdict is one of the n and not right, so that accuracy never gains by it."""
    share = accuracy([row["correct"] for row in rows])
    return {
        "n": len(rows),
        "no_verdict": sum(row.get("no_verdict", False) for row in rows),
        "accuracy": share.mean,
        "ci95": [share.low, share.high],
    }
