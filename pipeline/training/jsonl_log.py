"""A run's log and samples of its completions as files of JSON lines, written while it runs.

    log.jsonl      one row a rollout or evaluation, the names and numbers of every tracker
    samples.jsonl  a few completions a rollout: {step, question, completion, outcome, value}

They need no tracker, survive a kill, and can be read with `tail -f`. A resumed run drops the rows
behind the checkpoint it starts from.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

LOG_FILE = "log.jsonl"
SAMPLES_FILE = "samples.jsonl"


class JsonlLogCallback(TrainerCallback):
    """Writes LOG_FILE in the run's folder, and drops what a resumed run is about to write again."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        if state.is_world_process_zero:
            step, per_rollout = state.global_step, args.steps_per_rollout
            keep_until(Path(args.output_dir) / LOG_FILE, step)
            # A rollout that is half used has its samples already.
            keep_until(Path(args.output_dir) / SAMPLES_FILE, -(-step // per_rollout) * per_rollout)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict | None = None, **others: Any
    ) -> None:
        if state.is_world_process_zero and logs:
            append(Path(args.output_dir) / LOG_FILE, [{"step": state.global_step, **logs}])


def show(callbacks: Iterable[TrainerCallback], step: int, rows: list[dict[str, Any]]) -> None:
    """Put samples before the eyes of a run with TensorBoard, under its tab TEXT."""
    text = "\n\n---\n\n".join(
        f"**outcome {row['outcome']}, value {row['value']:.2f}**\n\n"
        + "\n".join(f"    {line}" for line in f"{row['question']}\n{row['completion']}".split("\n"))
        for row in rows
    )
    for callback in callbacks:
        if getattr(callback, "tb_writer", None) is not None:
            callback.tb_writer.add_text("samples", text, step)


def append(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Add rows at the end of a file of JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row, default=str) + "\n" for row in rows)


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines; a last line that a kill cut short is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").split("\n"):
        if not line:
            continue
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def keep_until(path: Path, step: int) -> None:
    """Drop what was written after `step`."""
    if not path.is_file():
        return
    rows = [row for row in read(path) if row.get("step", 0) <= step and step > 0]
    path.unlink()
    if rows:
        append(path, rows)
