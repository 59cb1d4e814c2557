"""What the contenders that are trainers of transformers have in common."""

from typing import Any

from datasets import Dataset
from transformers import TrainerCallback

from eval.bench.iteration import Laps
from pipeline.chat.prompts import user_message


class OneUpdateALap(TrainerCallback):
    """A lap is a rollout and its epochs."""

    def __init__(self, laps: Laps, steps: int, figures: Any):
        self.laps, self.steps, self.figures = laps, steps, figures

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.laps.begin()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.steps == 0:
            self.laps.end(**self.figures())
            self.laps.begin()


def asked(prompts: dict[str, list]) -> Dataset:
    """The questions as TRL's trainers take them, the expected answers beside them."""
    return Dataset.from_dict(
        {"prompt": list(map(user_message, prompts["questions"])), "answer": prompts["answers"]}
    )
