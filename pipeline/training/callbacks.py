"""Callbacks that call one function at one moment of a training."""

from collections.abc import Callable

from transformers import TrainerCallback


class OnTrainBegin(TrainerCallback):
    """Calls `action` when Trainer has loaded its own state and initialized its counters."""

    def __init__(self, action: Callable[[], None]):
        self.action = action

    def on_train_begin(self, *args: object, **kwargs: object) -> None:
        """Call the action."""
        self.action()


class AfterStep(TrainerCallback):
    """Calls `action` after every optimizer step, before logging and saving."""

    def __init__(self, action: Callable[[], None]):
        self.action = action

    def on_step_end(self, *args: object, **kwargs: object) -> None:
        """Call the action."""
        self.action()
