"""Numbers that are not finite never reach the weights.

One NaN among the gradients makes every weight NaN in one step, because they are clipped by their
common norm. Where a reward, a log-probability, a value or an advantage of a rollout is not finite,
the whole rollout is left out; where a gradient is not, the optimizer step is. Each is counted and
said; MOST in a row end the run.
"""

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

MOST = 3


class NonfiniteError(ValueError):
    """The run goes on producing numbers that are not finite."""


class NonfiniteCheck:
    """Counts what was left out. A controller: its counts go with the checkpoint."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.total = 0
        self.in_a_row = 0
        self.left_out = False  # the rollout that is being trained on
        self._bad_reward: str | None = None

    def watch(self, function: Callable, name: str) -> Callable:
        """The reward function; NaN and infinity are noted, None still means "does not apply"."""

        @functools.wraps(function)
        def watched(*args: Any, **columns: Any) -> Any:
            rewards = function(*args, **columns)
            for reward in rewards:
                if reward is not None and not math.isfinite(reward):
                    self._bad_reward = f"reward {name} = {reward}"
            return rewards

        return watched

    def rollout_is_finite(self, named: dict[str, torch.Tensor], mask_BC: torch.Tensor) -> bool:
        """Whether every number of the rollout is, on every process."""
        culprit, self._bad_reward = self._bad_reward, None
        for name, x_BC in named.items():
            if culprit is None and not x_BC[mask_BC].isfinite().all():
                culprit = name
        self.left_out = not self._all_agree(culprit, "rollout")
        return not self.left_out

    def gradients_are_finite(self, parameters: Iterable[nn.Parameter]) -> bool:
        """Whether every gradient is, on every process."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        # One number for all: their norm is finite only where each of them is.
        norm = torch.nn.utils.get_total_norm(gradients) if gradients else torch.zeros(())
        return self._all_agree(None if norm.isfinite() else "a gradient", "optimizer step")

    def step_was_taken(self) -> None:
        self.in_a_row = 0

    def state_dict(self) -> dict[str, Any]:
        return {"total": self.total, "in_a_row": self.in_a_row, "left_out": self.left_out}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.total, self.in_a_row = state["total"], state["in_a_row"]
        self.left_out = state["left_out"]

    def _all_agree(self, culprit: str | None, what: str) -> bool:
        bad = torch.tensor(float(culprit is not None), device=self.accelerator.device)
        if not self.accelerator.reduce(bad, reduction="sum"):
            return True
        self.total += 1
        self.in_a_row += 1
        message = (
            f"not finite: {culprit or 'a number on another process'}; this {what} leaves the "
            f"weights alone ({self.total} so far, {self.in_a_row} in a row)"
        )
        if self.in_a_row >= MOST:
            raise NonfiniteError(f"{message}; the run ends, lower learning_rate or mend the reward")
        if culprit is not None:
            print(message, flush=True)
        return False
