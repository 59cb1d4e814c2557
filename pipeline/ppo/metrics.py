"""What a PPO run logs: of a rollout, of an update, and the table of completions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from pipeline.ppo.groups import ScoredRollout, zero_variance
from pipeline.ppo.kl import k3
from pipeline.records import Rollout
from pipeline.scoring import Scores
from pipeline.stats.ranking import auroc, within_question_auroc_pooled


@dataclass(frozen=True)
class PPOLog:
    """Numbers for the next line of the log, each of all processes.

    `metrics` are those of training or of evaluation, by name; GRPOTrainer logs their means.
    """

    metrics: dict[str, list[float]]
    accelerator: Accelerator

    def add(self, name: str, value: float) -> None:
        self.metrics[name].append(value)

    def numbers(self, named: dict[str, float]) -> None:
        for name, value in named.items():
            self.add(name, value)

    def means(self, named: dict[str, torch.Tensor], mask_BC: torch.Tensor) -> dict[str, float]:
        """Means over the tokens that count, of all processes; {} where none counts."""
        totals = [(x_BC.detach() * mask_BC).sum() for x_BC in named.values()]
        sums = torch.stack([*totals, mask_BC.sum()]).float()
        *totals, count = self.accelerator.reduce(sums, reduction="sum").tolist()
        means = {name: total / count for name, total in zip(named, totals, strict=True) if count}
        for name, mean in means.items():
            self.add(name, mean)
        return means

    def update(
        self, scores: Scores, inputs: dict, policy_BC: Any, value_BC: Any, clipped_BC: Any
    ) -> None:
        """The losses of one micro-batch, and how far the policy has moved."""
        mask_BC = inputs["completion_mask"]
        named = {
            "loss/policy": policy_BC,
            "loss/value": value_BC,
            "entropy": scores.entropy_BC,
            "clipfrac": clipped_BC.float(),
            "approx_kl": k3(inputs["old_logprobs"], scores.logprobs_BC.detach(), mask_BC),
        }
        self.means(named, mask_BC)

    def rewards(self, names: Sequence[str], parts: torch.Tensor, outcomes_B: torch.Tensor) -> None:
        """Each reward function's mean, that of the weighted sum over what was judged, and the share
        of completions that were not.

        `parts` has one column a function and the rows of all processes already.
        """
        for index, name in enumerate(names):
            self.add(f"reward/{name}", parts[:, index].nanmean().item())
        self.means({"reward": outcomes_B.nan_to_num()}, ~outcomes_B.isnan())
        everything_B = torch.ones_like(outcomes_B, dtype=torch.bool)
        self.means({"completions/no_reward": outcomes_B.isnan().float()}, everything_B)

    def completions(self, rollout: Rollout, steps: Any) -> None:
        """Lengths, how many were cut off, and what single steps were paid."""
        ids_BC, mask_BC = rollout.completion_ids_BC, rollout.mask_completion_BC
        lengths_B = mask_BC.sum(dim=1).float()
        repeated_BC = (ids_BC[:, 1:] == ids_BC[:, :-1]) & mask_BC[:, 1:]
        means = {
            "completions/mean_length": lengths_B.mean(),
            "completions/truncated": rollout.truncated_B.float().mean(),
            "completions/repeated": repeated_BC.sum() / mask_BC[:, 1:].sum().clamp_min(1),
        }
        if steps:
            paid = [sum(reward for _, reward in marks) for marks in steps]
            means["reward/steps"] = torch.tensor(paid, dtype=lengths_B.dtype).mean().to(lengths_B)
        gathered = self.accelerator.reduce(torch.stack(list(means.values())), reduction="mean")
        for name, value in zip(means, gathered.tolist(), strict=True):
            self.add(name, value)

    def critic(self, scored: ScoredRollout, right_outcome: float, group: int) -> None:
        """How well the value before the last token tells right completions from wrong ones, and how
        many questions pay all their completions alike."""
        rollout, totals_B = scored.rollout, scored.totals()
        last_B = rollout.mask_completion_BC.sum(dim=1, keepdim=True) - 1
        values_B = rollout.values_BC.gather(1, last_B).squeeze(1)
        columns = torch.stack([values_B.float(), scored.outcomes_B.float(), totals_B.float()])
        # Rows of all processes; a value judged by nobody is neither right nor wrong.
        values_B, outcomes_B, totals_B = self.accelerator.gather(columns.T.contiguous()).cpu().T
        known_B = ~outcomes_B.isnan()
        right_B = outcomes_B >= right_outcome
        self.add("value/auroc", auroc(values_B[known_B].numpy(), right_B[known_B].numpy()))
        if group > 1 and len(values_B) % group == 0:
            question_B = torch.arange(len(values_B)) // group
            whole_B = known_B.view(-1, group).all(dim=1).repeat_interleave(group)
            columns = (x_B[whole_B].numpy() for x_B in (values_B, right_B, question_B))
            self.add("value/auroc_within", within_question_auroc_pooled(*columns))
            self.add("groups/zero_variance", zero_variance(totals_B, group).float().mean().item())


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
