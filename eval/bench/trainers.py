"""What the contenders that are trainers of transformers have in common."""

from typing import Any

from datasets import Dataset
from transformers import TrainerCallback

from eval.bench.iteration import Iterations
from pipeline.chat.prompts import user_message


class OneUpdatePerIteration(TrainerCallback):
    """A lap is a rollout and its epochs."""

    def __init__(self, iterations: Iterations, steps: int, figures: Any):
        self.iterations, self.steps, self.figures = iterations, steps, figures

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.iterations.begin()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.steps == 0:
            self.iterations.end(**self.figures())
            self.iterations.begin()


def asked(prompts: dict[str, list]) -> Dataset:
    """The questions as TRL's trainers take them, the expected answers beside them."""
    return Dataset.from_dict(
        {"prompt": list(map(user_message, prompts["questions"])), "answer": prompts["answers"]}
    )
