"""Keep NaN and infinity out of the weights.

One NaN among the gradients makes every weight NaN in one step, because gradients are clipped by
their common norm. Where a reward, log-probability, value or advantage of a rollout is not finite,
the whole rollout is left out; where a gradient is not, the optimizer step is. A rollout in which no
reward function applies to any completion is left out as well. Each case is counted and printed;
MOST in a row end the run.
"""

import functools
import inspect
import math
from collections.abc import Callable, Iterable, Mapping

import torch
from accelerate import Accelerator
from torch import nn

from pipeline.training.reward_errors import NoRewardError, reward_errors, reward_number

MOST = 3


class NonfiniteError(ValueError):
    """MOST rollouts or optimizer steps in a row were not finite."""


class NonfiniteCheck:
    """Counts rollouts and steps that were left out; `state_dict` goes into every checkpoint."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.total = 0
        self.in_a_row = 0
        self.without_reward_in_a_row = 0
        self.left_out = False  # whether the rollout that is being trained on is left out
        self._bad_reward: str | None = None

    def record_rewards(self, name: str, rewards: Iterable[float | None]) -> None:
        """Remember a reward that is NaN or infinite, for the next `rollout_is_usable`; None means
        that the function does not apply."""
        for reward in rewards:
            if reward is not None and not math.isfinite(reward):
                self._bad_reward = f"reward {name} = {reward}"

    def wrap(
        self, function: Callable, name: str, replaced: Mapping[str, object] | None = None
    ) -> Callable:
        """Return the reward function, wrapped to record non-finite rewards and to raise RewardError
        where it fails; its arguments of the names in `replaced` have those values.

        It may be a coroutine function, and may yield its rewards one by one.
        """
        title = f"reward {name}"

        def given(columns: dict[str, object]) -> dict[str, object]:
            return columns | {k: v for k, v in (replaced or {}).items() if k in columns}

        def recorded(rewards: Iterable[float | None]) -> list[float | None]:
            rewards = list(rewards)  # a generator can be read only once
            for reward in rewards:
                reward_number(title, function, reward)
            self.record_rewards(name, rewards)
            return rewards

        @functools.wraps(function)
        def wrapped(*args: object, **columns: object) -> list[float | None]:
            with reward_errors(title, function):
                return recorded(function(*args, **given(columns)))

        @functools.wraps(function)
        async def wrapped_async(*args: object, **columns: object) -> list[float | None]:
            with reward_errors(title, function):
                return recorded(await function(*args, **given(columns)))

        return wrapped_async if _is_async(function) else wrapped

    def rollout_is_usable(
        self, named: dict[str, torch.Tensor], mask_BC: torch.Tensor, has_outcome_B: torch.Tensor
    ) -> bool:
        """Return whether every number of the rollout is finite where the mask is True and some
        completion has an outcome, over all processes; `named` has the tensors by the name for the
        message."""
        # Both are computed: all processes take part in the reduction of each.
        finite, rewarded = self._is_finite(named, mask_BC), self._is_rewarded(has_outcome_B)
        self.left_out = not (finite and rewarded)
        return not self.left_out

    def _is_rewarded(self, has_outcome_B: torch.Tensor) -> bool:
        count = has_outcome_B.sum().float().to(self.accelerator.device)
        if self.accelerator.reduce(count, reduction="sum"):
            self.without_reward_in_a_row = 0
            return True
        self.without_reward_in_a_row += 1
        message = (
            "no reward: every reward function returned None for every completion; this rollout "
            f"does not change the weights ({self.without_reward_in_a_row} in a row)"
        )
        if self.without_reward_in_a_row >= MOST:
            raise NoRewardError(f"{message}; the run ends, correct the reward")
        if self.accelerator.is_main_process:
            print(message, flush=True)
        return False

    def _is_finite(self, named: dict[str, torch.Tensor], mask_BC: torch.Tensor) -> bool:
        culprit, self._bad_reward = self._bad_reward, None
        for name, x_BC in named.items():
            if culprit is None and not x_BC[mask_BC].isfinite().all():
                culprit = name
        return self._all_agree(culprit, "rollout")

    def gradients_are_finite(self, parameters: Iterable[nn.Parameter]) -> bool:
        """Return whether every gradient is finite, on every process."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        # One number instead of one per gradient: the norm is finite only if each of them is.
        norm = torch.nn.utils.get_total_norm(gradients) if gradients else torch.zeros(())
        return self._all_agree(None if norm.isfinite() else "a gradient", "optimizer step")

    def step_was_taken(self) -> None:
        """Reset the count in a row: an optimizer step was finite."""
        self.in_a_row = 0

    def state_dict(self) -> dict[str, int]:
        """The counts, and whether the current rollout is left out."""
        names = ("total", "in_a_row", "without_reward_in_a_row", "left_out")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on with the counts of a checkpoint."""
        self.total, self.in_a_row = state["total"], state["in_a_row"]
        self.left_out = bool(state["left_out"])
        self.without_reward_in_a_row = state.get("without_reward_in_a_row", 0)

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


def _is_async(function: Callable) -> bool:
    """Whether a call gives a coroutine, also of an object with such a `__call__`."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004
    )
