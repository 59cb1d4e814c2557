"""Keep NaN and infinity out of the weights.

One NaN among the gradients makes every weight NaN in one step, because gradients are clipped by
their common norm. Where a reward, log-probability, value or advantage of a rollout is not finite,
the whole rollout is left out; where a gradient is not, the optimizer step is. Each case is counted
and printed; MOST in a row end the run.
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
    """MOST rollouts or optimizer steps in a row were not finite."""


class NonfiniteCheck:
    """Counts rollouts and steps that were left out; `state_dict` goes into every checkpoint."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.total = 0
        self.in_a_row = 0
        self.left_out = False  # whether the rollout that is being trained on is left out
        self._bad_reward: str | None = None

    def record_rewards(self, name: str, rewards: Iterable[float | None]) -> None:
        """Remember a reward that is NaN or infinite, for the next `rollout_is_finite`; None means
        that the function does not apply."""
        for reward in rewards:
            if reward is not None and not math.isfinite(reward):
                self._bad_reward = f"reward {name} = {reward}"

    def wrap(self, function: Callable, name: str) -> Callable:
        """Return the reward function, wrapped to record non-finite rewards."""

        @functools.wraps(function)
        def wrapped(*args: Any, **columns: Any) -> Any:
            rewards = function(*args, **columns)
            self.record_rewards(name, rewards)
            return rewards

        return wrapped

    def rollout_is_finite(self, named: dict[str, torch.Tensor], mask_BC: torch.Tensor) -> bool:
        """Return whether every number of the rollout is finite where the mask is True, on every
        process; `named` has the tensors by the name for the message."""
        culprit, self._bad_reward = self._bad_reward, None
        for name, x_BC in named.items():
            if culprit is None and not x_BC[mask_BC].isfinite().all():
                culprit = name
        self.left_out = not self._all_agree(culprit, "rollout")
        return not self.left_out

    def gradients_are_finite(self, parameters: Iterable[nn.Parameter]) -> bool:
        """Return whether every gradient is finite, on every process."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        # One number instead of one per gradient: the norm is finite only if each of them is.
        norm = torch.nn.utils.get_total_norm(gradients) if gradients else torch.zeros(())
        return self._all_agree(None if norm.isfinite() else "a gradient", "optimizer step")

    def step_was_taken(self) -> None:
        """Reset the count in a row: an optimizer step was finite."""
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
            raise NonfiniteError(
                f"{message}; the run ends, lower learning_rate or correct the reward"
            )
        if culprit is not None:
            print(message, flush=True)
        return False
