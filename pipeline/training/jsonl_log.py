"""JSON Lines logs of a run, written while it trains.

    log.jsonl      one row per rollout or evaluation, with the metrics that trackers get
    samples.jsonl  a few completions per rollout: {step, question, completion, outcome, value}, and
                   the process where there are several

They need no tracker, survive a kill, and can be read with `tail -f`. A resumed run deletes the rows
after the checkpoint it starts from.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypedDict

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from pipeline.runtime import write_text

LOG_FILE = "log.jsonl"
SAMPLES_FILE = "samples.jsonl"


class SampleRow(TypedDict):
    """One completion in SAMPLES_FILE; the outcome is None where no reward function applied."""

    question: str
    completion: str
    outcome: float | None
    value: float


class JsonlLogCallback(TrainerCallback):
    """Writes LOG_FILE, and deletes the rows of both files that a resumed run writes again."""

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **others: object,
    ) -> None:
        """Delete the rows after the step that the run begins at."""
        if state.is_world_process_zero:
            step, per_rollout = state.global_step, getattr(args, "steps_per_rollout", 1)
            keep_until(Path(args.output_dir) / LOG_FILE, step)
            # A rollout that is in use at the checkpoint has its samples already.
            keep_until(Path(args.output_dir) / SAMPLES_FILE, -(-step // per_rollout) * per_rollout)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **others: object,
    ) -> None:
        """Append a row with the step."""
        if state.is_world_process_zero and logs:
            append(Path(args.output_dir) / LOG_FILE, [{"step": state.global_step, **logs}])


def show(callbacks: Iterable[TrainerCallback], step: int, rows: Iterable[SampleRow]) -> None:
    """Write samples to TensorBoard's tab TEXT, where the run reports to TensorBoard."""
    text = "\n\n---\n\n".join(
        f"**outcome {row['outcome']}, value {row['value']:.2f}**\n\n"
        + "\n".join(f"    {line}" for line in f"{row['question']}\n{row['completion']}".split("\n"))
        for row in rows
    )
    for callback in callbacks:
        if getattr(callback, "tb_writer", None) is not None:
            callback.tb_writer.add_text("samples", text, step)


def append(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Append rows to a JSON Lines file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(_lines(rows))


def read(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a JSON Lines file, without a last line that a kill cut short."""
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
    """Delete rows with a later step than `step`; all rows where it is 0. An OSError leaves the file
    as it was."""
    if not path.is_file():
        return
    rows = [row for row in read(path) if row.get("step", 0) <= step and step > 0]
    if rows:
        write_text(path, _lines(rows))
    else:
        path.unlink()


def _lines(rows: Iterable[Mapping[str, object]]) -> str:
    return "".join(json.dumps(row, default=str) + "\n" for row in rows)
