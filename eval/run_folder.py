"""The folder of one evaluation: settings.json, records.jsonl, metrics.json, run.json.

records.jsonl grows by whole chunks of problems, so that a killed evaluation can be resumed and
ends with the rows of an unbroken one.
"""

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from eval.metrics.scores import mean_tokens
from eval.row_types import Metrics, Record
from pipeline.folder_lock import require_free
from pipeline.grading.arithmetic import equations_in
from pipeline.progress import Progress, count_sequences
from pipeline.records import Problem
from pipeline.runtime import write_json
from pipeline.stats.intervals import accuracy

RowT = TypeVar("RowT", bound=Mapping[str, Any])


class RunFolder(Generic[RowT]):
    """The rows of one evaluation on disk; `rows` has the finished ones, in the order of problems.

    Nothing is written before the first `append`. Raises ValueError if the folder has an evaluation
    with other settings.
    """

    def __init__(self, path: str | Path, settings: Mapping[str, object], *, chunk: int, total: int):
        self.path = Path(path)
        self.settings, self.chunk = settings, chunk
        _require_same_settings(self.path, settings)
        lines = _finished_lines(self.path / "records.jsonl", chunk=chunk, total=total)
        self.rows: list[RowT] = [json.loads(line) for line in lines]
        self._finished_bytes = sum(len(line) + 1 for line in lines)

    def append(self, rows: Sequence[RowT]) -> None:
        """Write one more chunk of rows and flush it to disk."""
        records = self.path / "records.jsonl"
        if not self.rows:
            self.write_settings()
            records.touch()
        block = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
        with open(records, "r+b") as file:
            file.truncate(self._finished_bytes)  # removes an unfinished chunk
            file.seek(self._finished_bytes)
            file.write(block)
            file.flush()
            os.fsync(file.fileno())
        self._finished_bytes += len(block)
        self.rows += rows

    def write_settings(self) -> None:
        """Create the folder with settings.json."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.path / "settings.json", self.settings)

    def wait_for_settings(self, seconds: float) -> None:
        """Wait until another process has written settings.json, looking every so many seconds.

        Raises ValueError if its settings differ from these.
        """
        while not (self.path / "settings.json").is_file():
            time.sleep(seconds)
        _require_same_settings(self.path, self.settings)

    def replace(self, rows: Sequence[RowT]) -> None:
        """Write records.jsonl anew with all rows; it is complete or as before."""
        block = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
        staged = self.path / "records.jsonl.tmp"
        with open(staged, "wb") as file:
            file.write(block)
            file.flush()
            os.fsync(file.fileno())
        staged.replace(self.path / "records.jsonl")
        self.rows, self._finished_bytes = list(rows), len(block)

    def complete(
        self,
        problems: Sequence[Problem],
        answer: Callable[[Sequence[Problem], int], list[RowT]],
        label: str,
    ) -> None:
        """Append the rows of all problems without one, with a progress bar.

        answer  answer(chunk of problems, index of its first problem) returns their rows
        """
        done, samples = len(self.rows), self.settings.get("n", 1)
        with Progress(len(problems), label, unit="q", initial=done) as progress:
            for start in range(done, len(problems), self.chunk):
                part = problems[start : start + self.chunk]
                count = _SequenceCount(progress, start, len(part), int(str(samples)))
                with count_sequences(count):
                    rows = answer(part, start)
                self.append(rows)
                graded = [bool(row["correct"]) for row in self.rows if "correct" in row]
                if graded:
                    progress.note(f"accuracy {accuracy(graded).mean:.3f}")
                progress.reach(start + len(part))


class _SequenceCount:
    """Advances a bar by a question where all its samples are finished, up to the last but one."""

    def __init__(self, progress: Progress, start: int, questions: int, samples: int) -> None:
        self.progress, self.start = progress, start
        self.questions, self.samples = questions, samples
        self.finished = 0

    def __call__(self) -> None:
        self.finished += 1
        answered = min(self.finished // self.samples, self.questions - 1)
        self.progress.reach(self.start + answered)


def read_run(path: Path) -> tuple[Any, list[Any]]:
    """(metrics, records) of a finished evaluation, of the types that its command writes."""
    metrics = json.loads((path / "metrics.json").read_text(encoding="utf-8"))
    lines = (path / "records.jsonl").read_bytes().split(b"\n")
    return metrics, [json.loads(line) for line in lines if line]


def problem_keys(records: Sequence[Record]) -> list[tuple[str, str, str]]:
    """(id, question, expected answer) of every record; only runs with equal keys can be paired."""
    return [(row["id"], row["question"], row["expected"]) for row in records]


def _require_same_settings(path: Path, settings: Mapping[str, object]) -> None:
    stored = path / "settings.json"
    if not stored.is_file():
        require_free(path, "an evaluation")
        return
    before = json.loads(stored.read_text(encoding="utf-8"))
    for name in sorted(before.keys() | settings.keys()):
        if before.get(name) != settings.get(name):
            raise ValueError(
                f"{path} has an evaluation with {name}={before.get(name)}, this one has "
                f"{name}={settings.get(name)}: choose another --output_dir or delete that folder"
            )


def _finished_lines(path: Path, *, chunk: int, total: int) -> list[bytes]:
    """The lines of complete chunks.

    The problems of a chunk share one random generator, so an incomplete chunk is sampled again as a
    whole. Only the last chunk of an evaluation may be shorter.
    """
    if not path.is_file():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]  # text after the last newline is unfinished
    return lines if len(lines) == total else lines[: len(lines) // chunk * chunk]


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
