"""Alarms for a run that collapses: one line each, with the name of the rule and the remedy.

A rule reads the rows of the log, one per rollout. It fires once, when it holds for `patience`
rollouts in a row. Rules that compare with the start of the run take the mean of its first
`patience` rollouts.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

Row = Mapping[str, float]  # a row of the log, by metric


class RunStoppedError(ValueError):
    """An alarm ended the run (alarms=stop)."""


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Thresholds of the rules; PPOOptions has them as alarm_*."""

    patience: int = 5  # rollouts in a row
    kl: float = 1.0  # nats a token
    entropy: float = 0.05  # share of the start
    length: float = 3.0  # times the start
    repeated: float = 0.5  # share of tokens that repeat the one before them
    gap: float = 0.1  # well_formed up and correctness down by this much


class Alarms:
    """Applies the rules to the rows of a log, which `feed` takes in order."""

    def __init__(self, thresholds: Thresholds):
        self.thresholds = thresholds
        self.rows: list[Row] = []
        self.fired: set[str] = set()

    def feed(self, row: Row) -> list[str]:
        """Return the alarms that fire with this row."""
        self.rows.append(row)
        lines = []
        for name, rule in RULES.items():
            line = rule(self.rows, self.thresholds) if name not in self.fired else None
            if line is not None:
                self.fired.add(name)
                lines.append(f"alarm: {name}: {line}")
        return lines


class AlarmCallback(TrainerCallback):
    """Prints the alarms of a run while it trains; with `stop`, an alarm ends the run."""

    def __init__(self, thresholds: Thresholds, *, stop: bool):
        self.thresholds = thresholds
        self.stop = stop

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **others: object,
    ) -> None:
        """Start anew, with the rows of a checkpoint that the run resumes from."""
        # A resumed run reads the earlier rows from its checkpoint and repeats no alarm.
        self.alarms = Alarms(self.thresholds)
        for row in state.log_history:
            if "reward" in row:
                self.alarms.feed(row)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Row | None = None,
        **others: object,
    ) -> None:
        """Print the alarms of a rollout's row; RunStoppedError with `stop`."""
        if not logs or "reward" not in logs:
            return
        for line in self.alarms.feed(dict(logs)):
            if self.stop:  # on every process, whose logs are the same
                raise RunStoppedError(f"{line} (alarms=stop; checkpoints are kept)")
            if state.is_world_process_zero:
                print(line, flush=True)


def entropy_collapse(rows: Sequence[Row], limits: Thresholds) -> str | None:
    """The entropy is below a share of that at the start."""
    start, recent = _start(rows, "entropy", limits), _recent(rows, "entropy", limits)
    if start is None or not recent or max(recent) >= limits.entropy * start:
        return None
    return (
        f"entropy fell from {start:.3g} to {recent[-1]:.3g} nats a token; every completion is the "
        "same soon. Raise entropy_coef or clip_high, or lower learning_rate"
    )


def kl_explosion(rows: Sequence[Row], limits: Thresholds) -> str | None:
    """The KL from the reference is above a limit."""
    recent = _recent(rows, "kl", limits)
    if not recent or min(map(abs, recent)) <= limits.kl:
        return None
    return (
        f"KL from the reference is {recent[-1]:.3g} nats a token, above {limits.kl}. Raise "
        "kl_coef, give kl_controller=adaptive, or lower learning_rate"
    )


def zero_variance_rewards(rows: Sequence[Row], limits: Thresholds) -> str | None:
    """No group has completions of different reward."""
    recent = _recent(rows, "groups/zero_variance", limits)
    if not recent or min(recent) < 1.0:
        return None
    reward = rows[-1].get("reward")
    return (
        f"all completions of every question earn the same (reward {reward}); nothing is left to "
        "learn from. Check the reward function, or ask questions of another level"
    )


def length_explosion(rows: Sequence[Row], limits: Thresholds) -> str | None:
    """The completions are several times longer than at the start."""
    name = "completions/mean_length"
    start, recent = _start(rows, name, limits), _recent(rows, name, limits)
    if start is None or not recent or min(recent) <= limits.length * start:
        return None
    return (
        f"completions grew from {start:.0f} to {recent[-1]:.0f} tokens, "
        f"{100 * (rows[-1].get('completions/truncated') or 0):.0f}% cut off. "
        "Give overlong_penalty, or lower max_completion_length"
    )


def repetition(rows: Sequence[Row], limits: Thresholds) -> str | None:
    """A large share of tokens equals the token before."""
    recent = _recent(rows, "completions/repeated", limits)
    if not recent or min(recent) <= limits.repeated:
        return None
    return (
        f"{100 * recent[-1]:.0f}% of the tokens repeat the one before them. The policy has "
        "collapsed; go back to an earlier checkpoint with a lower learning_rate"
    )


def form_without_content(rows: Sequence[Row], limits: Thresholds) -> str | None:
    """The reward for form rises while correctness falls."""
    formed, right = "reward/well_formed", "reward/correctness"
    starts = [_start(rows, name, limits) for name in (formed, right)]
    recents = [_recent(rows, name, limits) for name in (formed, right)]
    formed_start, right_start = starts
    if formed_start is None or right_start is None or not all(recents):
        return None
    better = min(recents[0]) - formed_start > limits.gap
    worse = right_start - max(recents[1]) > limits.gap
    if not (better and worse):
        return None
    return (
        f"well_formed rose from {formed_start:.2f} to {recents[0][-1]:.2f} while correctness fell "
        f"from {right_start:.2f} to {recents[1][-1]:.2f}. Lower the weight of well_formed"
    )


RULES: dict[str, Callable[[Sequence[Row], Thresholds], str | None]] = {
    "entropy collapse": entropy_collapse,
    "KL explosion": kl_explosion,
    "zero-variance rewards": zero_variance_rewards,
    "length explosion": length_explosion,
    "repeated tokens": repetition,
    "form without content": form_without_content,
}


def _recent(rows: Sequence[Row], name: str, limits: Thresholds) -> list[float]:
    """Return the last `patience` values of a metric, [] where one is missing or not finite."""
    last = [row.get(name) for row in rows[-limits.patience :]]
    known = [x for x in last if x is not None and math.isfinite(x)]
    return known if len(known) == limits.patience else []


def _start(rows: Sequence[Row], name: str, limits: Thresholds) -> float | None:
    """Return the mean of the first `patience` values, once as many came after them."""
    if len(rows) < 2 * limits.patience:
        return None
    first = _recent(rows[: limits.patience], name, limits)
    return sum(first) / len(first) if first else None
