"""What a PPO run logs: of a rollout, of an update, and the table of completions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from pipeline.records import Rollout
from pipeline.rollout import Scores
from pipeline.train.losses import approx_kl


@dataclass(frozen=True)
class PPOLog:
    """Numbers for the next line of the log, each of all processes.

    `metrics` are those of training or of evaluation, by name; GRPOTrainer logs their means.
    """

    metrics: dict[str, list[float]]
    accelerator: Accelerator

    def add(self, name: str, value: float) -> None:
        self.metrics[name].append(value)

    def means(self, named: dict[str, torch.Tensor], mask_BC: torch.Tensor) -> None:
        """Means over the tokens that count, of all processes."""
        totals = [(x_BC.detach() * mask_BC).sum() for x_BC in named.values()]
        sums = torch.stack([*totals, mask_BC.sum()]).float()
        *totals, count = self.accelerator.reduce(sums, reduction="sum").tolist()
        for name, total in zip(named, totals, strict=True):
            if count:
                self.add(name, total / count)

    def update(
        self, scores: Scores, inputs: dict, policy_BC: Any, value_BC: Any, clipped_BC: Any
    ) -> None:
        """The losses of one micro-batch, and how far the policy has moved."""
        named = {
            "loss/policy": policy_BC,
            "loss/value": value_BC,
            "entropy": scores.entropy_BC,
            "clipfrac": clipped_BC.float(),
            "approx_kl": approx_kl(scores.logprobs_BC.detach(), inputs["old_logprobs"]),
        }
        self.means(named, inputs["completion_mask"])

    def rewards(self, names: Sequence[str], parts: torch.Tensor, outcomes_B: torch.Tensor) -> None:
        """Each reward function's mean, then that of the weighted sum over what was judged.

        `parts` has one column a function and the rows of all processes already.
        """
        for index, name in enumerate(names):
            self.add(f"reward/{name}", parts[:, index].nanmean().item())
        self.means({"reward": outcomes_B.nan_to_num()}, ~outcomes_B.isnan())

    def completions(self, rollout: Rollout, steps: Any) -> None:
        """Lengths, how many were cut off, and what single steps were paid."""
        lengths_B = rollout.mask_completion_BC.sum(dim=1).float()
        means = {
            "completions/mean_length": lengths_B.mean(),
            "completions/truncated": rollout.truncated_B.float().mean(),
        }
        if steps:
            paid = [sum(reward for _, reward in marks) for marks in steps]
            means["reward/steps"] = torch.tensor(paid).mean().to(lengths_B)
        gathered = self.accelerator.reduce(torch.stack(list(means.values())), reduction="mean")
        for name, value in zip(means, gathered.tolist(), strict=True):
            self.add(name, value)


def fill_table(
    table: dict[str, Any],
    names: Sequence[str],
    parts: torch.Tensor,
    outcomes_B: torch.Tensor,
    prompts: list,
    texts: list[str],
) -> None:
    """Adds a rollout to GRPOTrainer's table of completions, which `log_completions` prints."""
    for index, name in enumerate(names):
        table["rewards"][name].extend(parts[:, index].tolist())
    table["prompt"].extend(gather_object(prompts))
    table["completion"].extend(gather_object(texts))
    table["advantages"].extend(gather_object(outcomes_B.tolist()))
