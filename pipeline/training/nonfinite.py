"""Numbers that are not finite never reach the weights.

One NaN among the gradients makes every weight NaN in one step, because they are clipped by their
common norm. Where a reward, a log-probability, a value or an advantage of a rollout is not finite,
the whole rollout is left out; where a gradient is not, the optimizer step is. So is a rollout of
which no reward function could judge any completion. Each is counted and said; MOST in a row end the
run. A reward function that raises SystemExit ends it as well, as an error.
"""

import functools
import inspect
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

MOST = 3


class NonfiniteError(ValueError):
    """The run goes on producing numbers that are not finite."""


class NoRewardError(ValueError):
    """The reward functions say nothing about any completion, or leave."""


@contextmanager
def no_way_out(name: str) -> Iterator[None]:
    """Turns a SystemExit, which would end the run as if it were done, into a NoRewardError."""
    try:
        yield
    except SystemExit as error:
        raise NoRewardError(
            f"{name} raised SystemExit({error.code!r}); a reward is a number, or None where it "
            "does not apply: mend the function"
        ) from error


class NonfiniteCheck:
    """Counts what was left out. A controller: its counts go with the checkpoint."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.total = 0
        self.in_a_row = 0
        self.unjudged_in_a_row = 0
        self.left_out = False  # the rollout that is being trained on
        self._bad_reward: str | None = None

    def watch(self, function: Callable, name: str) -> Callable:
        """The reward function; NaN and infinity are noted, None still means "does not apply".

        It may be a coroutine function, and may yield its rewards one by one.
        """

        def noted(rewards: Iterable[float | None]) -> list[float | None]:
            rewards = list(rewards)  # a generator can be read only once
            for reward in rewards:
                if reward is not None and not math.isfinite(reward):
                    self._bad_reward = f"reward {name} = {reward}"
            return rewards

        @functools.wraps(function)
        def watched(*args: Any, **columns: Any) -> list[float | None]:
            with no_way_out(f"reward {name}"):
                return noted(function(*args, **columns))

        @functools.wraps(function)
        async def watched_later(*args: Any, **columns: Any) -> list[float | None]:
            with no_way_out(f"reward {name}"):
                return noted(await function(*args, **columns))

        return watched_later if _is_async(function) else watched

    def rollout_is_usable(
        self, named: dict[str, torch.Tensor], mask_BC: torch.Tensor, judged_B: torch.Tensor
    ) -> bool:
        """Whether every number of the rollout is finite and some completion was judged, looking at
        every process."""
        # Both are asked, since all processes must take part in each.
        finite, judged = self._is_finite(named, mask_BC), self._is_judged(judged_B)
        self.left_out = not (finite and judged)
        return not self.left_out

    def _is_judged(self, judged_B: torch.Tensor) -> bool:
        count = judged_B.sum().float().to(self.accelerator.device)
        if self.accelerator.reduce(count, reduction="sum"):
            self.unjudged_in_a_row = 0
            return True
        self.unjudged_in_a_row += 1
        message = (
            "no reward: every reward function gave None for every completion; this rollout leaves "
            f"the weights alone ({self.unjudged_in_a_row} in a row)"
        )
        if self.unjudged_in_a_row >= MOST:
            raise NoRewardError(f"{message}; the run ends, mend the reward")
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
        """Whether every gradient is, on every process."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        # One number for all: their norm is finite only where each of them is.
        norm = torch.nn.utils.get_total_norm(gradients) if gradients else torch.zeros(())
        return self._all_agree(None if norm.isfinite() else "a gradient", "optimizer step")

    def step_was_taken(self) -> None:
        self.in_a_row = 0

    def state_dict(self) -> dict[str, Any]:
        names = ("total", "in_a_row", "unjudged_in_a_row", "left_out")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.total, self.in_a_row = state["total"], state["in_a_row"]
        self.left_out = state["left_out"]
        self.unjudged_in_a_row = state.get("unjudged_in_a_row", 0)

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


def _is_async(function: Callable) -> bool:
    """Whether a call gives a coroutine, also of an object with such a `__call__`."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004
    )
