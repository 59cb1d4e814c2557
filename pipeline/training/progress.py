"""Progress of a training: one bar with the remaining time, and one short line a logged row.

The time of a PPO rollout includes its sampling, so the remaining time does as well.
"""

from collections.abc import Mapping

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from pipeline.progress import Progress


class TrainingProgress(TrainerCallback):
    """Shows the progress of a Trainer; `steps_per_unit` optimizer steps are one `unit`."""

    def __init__(self, label: str, *, unit: str = "steps", steps_per_unit: int = 1) -> None:
        self.label, self.unit, self.steps_per_unit = label, unit, steps_per_unit
        self.progress: Progress | None = None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **others: object,
    ) -> None:
        """Start the bar, of a resumed run where it was interrupted."""
        if state.is_world_process_zero and not args.disable_tqdm:
            size = self.steps_per_unit
            self.progress = Progress(
                state.max_steps // size,
                self.label,
                unit=self.unit,
                initial=state.global_step // size,
                lines=False,
            )

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **others: object,
    ) -> None:
        """Advance the bar."""
        if self.progress is not None:
            self.progress.reach(state.global_step // self.steps_per_unit)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **others: object,
    ) -> None:
        """Print the row of the log as one short line."""
        size = self.steps_per_unit
        where = f"{state.global_step // size}/{state.max_steps // size}"
        line = log_line(where, logs or {}) if state.is_world_process_zero else ""
        if line and self.progress is not None:
            self.progress.write(line)
        elif line:
            print(line, flush=True)

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **others: object,
    ) -> None:
        """Close the bar."""
        if self.progress is not None:
            self.progress.close()


# (name in the log, text with its value); shares are printed in percent. `z` prints -0.0 as 0.0.
_TRAINED = (
    ("loss", "loss {:z.3f}"),
    ("loss/thought", "thought {:.3f}"),
    ("loss/answer", "answer {:.3f}"),
    ("token_accuracy", "tokens right {:.0%}"),
    ("eval/perplexity", "perplexity {:.2f}"),
)
_ROLLOUT = (
    ("reward", "reward {:z.3f}"),
    ("reward/correctness", "right {:.0%}"),
    ("kl", "KL {:z.4f}"),
    ("entropy", "entropy {:.2f}"),
    ("completions/mean_length", "{:.0f} tok"),
    ("tokens_per_second", "{:,.0f} tok/s"),
)


def log_line(where: str, row: Mapping[str, float]) -> str:
    """One line of a row of the log, "" for a row without a loss or a reward.

    >>> row = {"reward": 0.5, "reward/correctness": 0.4, "kl": 0.001, "loss": 1.0, "step_time": 2}
    >>> log_line("3/190", row)
    '  3/190  reward 0.500  right 40%  KL 0.0010'
    """
    prefix = "eval_" if any(name.startswith("eval_") for name in row) else ""
    plain = {name.removeprefix(prefix): value for name, value in row.items()}
    if "train_runtime" in row or not {"reward", "loss"} & plain.keys():
        return ""
    shown = [
        text.format(value)
        for name, text in (_ROLLOUT if "reward" in plain else _TRAINED)
        if isinstance(value := plain.get(name), int | float)
    ]
    return "  ".join([f"{where:>7}", *(["evaluation"] if prefix else []), *shown])
