"""What reward functions log themselves, by TRL's arguments `log_extra` and `log_metric`."""

from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
from accelerate.utils import gather_object

from pipeline.ppo.metrics import PPOLog


class RewardLogs:
    """Columns for the table of completions, and metrics, of one call of every reward function.

    Rewards of resampled groups and of Monte-Carlo samples are left out, as in all other metrics.
    """

    def __init__(self) -> None:
        self.columns: dict[str, list] = defaultdict(list)  # by name: a value for each completion
        self.metrics: dict[str, list[float]] = defaultdict(list)
        self.is_open = False

    def begin(self) -> None:
        """Forget what is there, and record until `end`."""
        self.columns.clear()
        self.metrics.clear()
        self.is_open = True

    def end(self) -> None:
        """Record nothing until `begin`."""
        self.is_open = False

    def arguments(self) -> dict[str, Callable]:
        """Return the functions that reward functions are given, by the names of TRL."""
        return {"log_extra": self._add_column, "log_metric": self._add_metric}

    def flush(self, log: PPOLog, table: dict[str, dict], completions: int) -> None:
        """Add the metrics, means over all processes, to the log, and the columns to the table; all
        processes call it."""
        for name in _of_all_processes(self.metrics):
            mine = torch.tensor([[sum(self.metrics[name]), len(self.metrics[name])]])
            mine = mine.float().to(log.accelerator.device)
            total, count = log.accelerator.gather(mine).sum(dim=0).tolist()
            log.add(name, total / max(count, 1))
        for name in _of_all_processes(self.columns):
            values = self.columns.get(name, [None] * completions)
            table.setdefault("extra", defaultdict(list))[name].extend(gather_object(values))

    def _add_column(self, column: str, values: Sequence[object]) -> None:
        if self.is_open:
            self.columns[column].extend(values)

    def _add_metric(self, name: str, value: float) -> None:
        if self.is_open:
            self.metrics[name].append(float(value))


def _of_all_processes(named: dict[str, list]) -> list[str]:
    return sorted(set(gather_object(list(named))))
