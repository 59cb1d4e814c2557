"""Metrics of a PPO run: of a rollout, of an update, and samples of completions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from pipeline.ppo.advantages import masked_moments, masked_sums
from pipeline.ppo.groups import ScoredRollout, zero_variance
from pipeline.ppo.minibatches import Batch
from pipeline.ppo.rollout import unpad
from pipeline.records import Rollout
from pipeline.stats.calibration import calibration
from pipeline.stats.ranking import auroc, within_question_auroc_pooled
from pipeline.training.jsonl_log import SampleRow


@dataclass(frozen=True)
class PPOLog:
    """Collects metrics over all processes for the next row of the log.

    Args:
        metrics: values by name, since the last row; the row has their means.
        accelerator: `reduce` and `gather` over processes.
    """

    metrics: dict[str, list[float]]
    accelerator: Accelerator

    def add(self, name: str, value: float) -> None:
        """Add a value that is equal on all processes."""
        self.metrics[name].append(value)

    def add_all(self, named: dict[str, float]) -> None:
        """Add values by name."""
        for name, value in named.items():
            self.add(name, value)

    def add_mean(self, name: str, values: torch.Tensor) -> None:
        """Add the mean over the processes' means."""
        self.add(name, self.accelerator.reduce(values.float().mean(), reduction="mean").item())

    def means(self, named: dict[str, torch.Tensor], mask_BC: torch.Tensor) -> dict[str, float]:
        """Add and return the means over the mask, of all processes; {} where the mask is empty."""
        totals = [(x_BC.detach() * mask_BC).sum() for x_BC in named.values()]
        sums = torch.stack([*totals, mask_BC.sum()]).float()
        *totals, count = self.accelerator.reduce(sums, reduction="sum").tolist()
        means = {name: total / count for name, total in zip(named, totals, strict=True) if count}
        for name, mean in means.items():
            self.add(name, mean)
        return means

    def explained_variance(
        self, values_BC: torch.Tensor, returns_BC: torch.Tensor, mask_BC: torch.Tensor
    ) -> None:
        """Add 1 - Var[R - V] / Var[R] over the tokens in the mask of all processes; NaN where R is
        constant or there is none."""
        values_BC, returns_BC = values_BC.float(), returns_BC.float()
        pairs = torch.stack([masked_sums(x, mask_BC) for x in (returns_BC, returns_BC - values_BC)])
        returns, errors = self.accelerator.reduce(pairs, reduction="sum")
        # Not a variance of 0: the rounded mean of equal numbers may differ from each of them.
        lowest, highest = (returns_BC.masked_fill(~mask_BC, x) for x in (torch.inf, -torch.inf))
        ends = self.accelerator.gather(torch.stack([lowest.min(), highest.max()]))
        variance = masked_moments(returns)[1] if ends[0::2].min() < ends[1::2].max() else 0.0
        found = 1 - masked_moments(errors)[1] / variance if variance else float("nan")
        self.add("explained_variance", found)

    def rewards(self, names: Sequence[str], parts: torch.Tensor, outcomes_B: torch.Tensor) -> None:
        """Add each reward function's mean, the mean of the outcomes that are not NaN, and the share
        of completions without an outcome.

        `parts` has one column for each function and the rows of all processes.
        """
        for index, name in enumerate(names):
            self.add(f"reward/{name}", parts[:, index].nanmean().item())
        self.means({"reward": outcomes_B.nan_to_num()}, ~outcomes_B.isnan())
        everything_B = torch.ones_like(outcomes_B, dtype=torch.bool)
        self.means({"completions/no_reward": outcomes_B.isnan().float()}, everything_B)

    def completions(
        self, rollout: Rollout, steps: Sequence[Sequence[tuple[int, float]]] | None
    ) -> None:
        """Add mean length, shares of truncated completions and repeated tokens, step rewards."""
        ids_BC, mask_BC = rollout.completion_ids_BC, rollout.mask_completion_BC
        lengths_B = mask_BC.sum(dim=1).float()
        repeated_BC = (ids_BC[:, 1:] == ids_BC[:, :-1]) & mask_BC[:, 1:]
        means = {
            "completions/mean_length": lengths_B.mean(),
            "completions/truncated": rollout.truncated_B.float().mean(),
            "completions/repeated": repeated_BC.sum() / mask_BC[:, 1:].sum().clamp_min(1),
        }
        if steps:
            sums = [sum(reward for _, reward in step_rewards) for step_rewards in steps]
            means["reward/steps"] = torch.tensor(sums, dtype=lengths_B.dtype).mean().to(lengths_B)
        gathered = self.accelerator.reduce(torch.stack(list(means.values())), reduction="mean")
        for name, value in zip(means, gathered.tolist(), strict=True):
            self.add(name, value)

    def value_ranking(self, scored: ScoredRollout, right_outcome: float, group: int) -> None:
        """Add how well V tells right from wrong completions, and the share of groups without
        variance: its AUROC before the last token over all pairs and within a question, its AUROC
        within a question at the ends of steps, and its calibration error."""
        rollout, totals_B = scored.rollout, scored.totals()
        last_B = rollout.mask_completion_BC.sum(dim=1, keepdim=True) - 1
        values_B = rollout.values_BC.gather(1, last_B).squeeze(1)
        columns = torch.stack([values_B.float(), scored.outcomes_B.float(), totals_B.float()])
        # Rows of all processes; without an outcome a completion is neither right nor wrong.
        values_B, outcomes_B, totals_B = self.accelerator.gather(columns.T.contiguous()).cpu().T
        known_B = ~outcomes_B.isnan()
        right_B = outcomes_B >= right_outcome
        known = values_B[known_B].numpy(), right_B[known_B].numpy()
        self.add("value/auroc", auroc(*known))
        if len(known[0]) and np.isfinite(known[0]).all():
            self.add("value/calibration_error", calibration(*known).ece)
        if group > 1 and len(values_B) % group == 0:
            question_B = torch.arange(len(values_B)) // group
            whole_B = known_B.view(-1, group).all(dim=1).repeat_interleave(group)
            columns = (x_B[whole_B].numpy() for x_B in (values_B, right_B, question_B))
            self.add("value/auroc_within", within_question_auroc_pooled(*columns))
            self.add("groups/zero_variance", zero_variance(totals_B, group).float().mean().item())
            if scored.steps is not None:
                self._ranking_at_steps(scored, right_outcome, group)

    def _ranking_at_steps(self, scored: ScoredRollout, right_outcome: float, group: int) -> None:
        """Add the AUROC of V at the ends of steps, over pairs of one question and step number."""
        values_BC = scored.rollout.values_BC.float().cpu()
        outcomes = scored.outcomes_B.tolist()
        first = self.accelerator.process_index * len(outcomes) // group
        rows = [
            (values_BC[b, token].item(), outcomes[b] >= right_outcome, first + b // group, step)
            for b, steps in enumerate(scored.steps or [])
            if outcomes[b] == outcomes[b]  # not NaN
            for step, (token, _) in enumerate(steps)
        ]
        rows = gather_object(rows)
        if rows:
            values, right, question, step = map(np.asarray, zip(*rows, strict=True))
            states = question * (step.max() + 1) + step
            area = within_question_auroc_pooled(values, right, states)
            self.add("value/auroc_within_steps", area)


class MeanSums:
    """Sums of an update's metrics over its micro-batches, kept on their device.

    Nothing is read from the device and no process waits for another until `flush`.
    """

    def __init__(self) -> None:
        self.sums: dict[str, torch.Tensor] = {}  # by name: (sum over the mask, its number of True)

    def means(self, named: dict[str, torch.Tensor], mask_BC: torch.Tensor) -> None:
        """Add to the sums over the mask of the values by name."""
        count = mask_BC.sum()
        for name, x_BC in named.items():
            pair = torch.stack([(x_BC.detach() * mask_BC).sum(), count]).float()
            self.sums[name] = self.sums[name] + pair if name in self.sums else pair

    def flush(self, log: PPOLog) -> None:
        """Add the means over all micro-batches and processes to a log, and begin again."""
        if not self.sums:
            return
        pairs = log.accelerator.reduce(torch.stack(list(self.sums.values())), reduction="sum")
        for name, (total, count) in zip(self.sums, pairs.tolist(), strict=True):
            if count:
                log.add(name, total / count)
        self.sums = {}


def fill_table(
    table: dict[str, Any],
    names: Sequence[str],
    parts: torch.Tensor,
    advantages: list[float],
    prompts: list,
    texts: list[str],
) -> None:
    """Add a rollout to the table of completions that `log_completions` prints; `parts` has the rows
    of all processes, everything else those of this one."""
    for index, name in enumerate(names):
        table["rewards"][name].extend(parts[:, index].tolist())
    table["prompt"].extend(gather_object(prompts))
    table["completion"].extend(gather_object(texts))
    table["advantages"].extend(gather_object(advantages))


def mean_advantages(batch: Batch, rollout: Rollout) -> list[float]:
    """Return the mean advantage of the tokens of each completion of a rollout; NaN where the batch
    made of it has left the completion out, or another one in its place."""
    mask_BC = batch["completion_mask"]
    means_B = (batch["advantages"] * mask_BC).sum(dim=1) / mask_BC.sum(dim=1)
    trained = unpad(batch["completion_ids"], mask_BC)
    sampled = unpad(rollout.completion_ids_BC, rollout.mask_completion_BC)
    return [
        mean if mine == own else float("nan")
        for mean, mine, own in zip(means_B.tolist(), trained, sampled, strict=True)
    ]


def gather_samples(rows: list[SampleRow], accelerator: Accelerator) -> list[SampleRow]:
    """Return the rows of all processes; of several, each row has the number of its process."""
    if accelerator.num_processes == 1:
        return rows
    return gather_object([{**row, "process": accelerator.process_index} for row in rows])


def sample_rows(
    count: int, questions: Sequence[str], texts: Sequence[str], scored: ScoredRollout
) -> list[SampleRow]:
    """Return `count` completions at even distances in the rollout, or all where it has fewer, as
    rows of samples.jsonl."""
    rollout = scored.rollout
    last_B = rollout.mask_completion_BC.sum(dim=1) - 1
    rows: list[SampleRow] = []
    count = min(count, len(texts))
    for b in (k * len(texts) // count for k in range(count)):
        outcome = scored.outcomes_B[b].item()
        rows.append(
            {
                "question": questions[b],
                "completion": texts[b],
                "outcome": outcome if outcome == outcome else None,
                "value": rollout.values_BC[b, last_B[b]].item(),
            }
        )
    return rows
