"""Which questions a PPO run asks beside those that TRL's order brings, and which it trains on."""

from collections.abc import Callable
from typing import Any

import torch
from trl import GRPOTrainer

from pipeline.ppo.config import PPOConfig
from pipeline.ppo.curriculum import LevelCurriculum
from pipeline.ppo.groups import ScoredRollout, replace_groups, zero_variance
from pipeline.training.determinism import seeded_generator

# (rows of the data set, purpose) -> their completions, sampled and judged
Draw = Callable[[list[dict], str], ScoredRollout]


class QuestionSource:
    """Questions drawn from the training data as the seed, the step and the curriculum say.

    Every process draws for all of them and keeps its part, so that their curricula stay equal.
    """

    def __init__(self, trainer: GRPOTrainer):
        self.trainer = trainer
        self.args = trainer.args
        self.accelerator = trainer.accelerator
        self.dataset = trainer.train_dataset
        self.curriculum = level_curriculum(self.dataset, self.args)

    def fresh(self, count: int, purpose: str) -> tuple[list[int], list[dict]]:
        """(indices, rows): `count` questions for this process, each once for every completion."""
        generator = seeded_generator(self.args.seed, purpose, self.trainer.state.global_step)
        total = count * self.accelerator.num_processes
        if self.curriculum is not None:
            drawn = self.curriculum.draw(total, generator)
        else:
            drawn = torch.randint(len(self.dataset), (total,), generator=generator).tolist()
        first = self.accelerator.process_index * count
        mine = [
            index
            for index in drawn[first : first + count]
            for _ in range(self.args.completions_per_question)
        ]
        return mine, [self.dataset[index] for index in mine]

    def learn(self, asked: list[int], outcomes_B: torch.Tensor) -> dict[str, float]:
        """Tell the curriculum what came of its questions; {name: number} for the log."""
        columns = torch.stack([torch.tensor(asked).to(outcomes_B), outcomes_B], dim=1)
        rows = self.accelerator.gather(columns.contiguous()).tolist()
        scored = [(int(index), outcome) for index, outcome in rows if outcome == outcome]
        rights = [outcome >= self.args.right_outcome for _, outcome in scored]
        self.curriculum.update([index for index, _ in scored], rights)
        shares = {f"curriculum/{k}/share": x for k, x in self.curriculum.shares().items()}
        rates = {
            f"curriculum/{k}/success": self.curriculum.success(k) for k in self.curriculum.names
        }
        return shares | rates

    def worth_training_on(
        self, scored: ScoredRollout, draw: Draw
    ) -> tuple[ScoredRollout, torch.Tensor, dict[str, float]]:
        """(judged, counts_B, numbers for the log): alike questions exchanged or left out, and
        where asked for, completions that ran out of budget left out as well."""
        counts_B, numbers = torch.ones_like(scored.outcomes_B, dtype=torch.bool), {}
        if self.args.zero_variance_groups != "keep":
            scored, zero_variance_Q = self._exchanged(scored, draw)
            counts_B = ~zero_variance_Q.repeat_interleave(self.args.completions_per_question)
            share = self.accelerator.reduce(zero_variance_Q.float().mean(), reduction="mean")
            numbers["groups/left_out"] = share.item()
        if self.args.mask_truncated_completions:
            counts_B = counts_B & ~scored.rollout.truncated_B
        return scored, counts_B, numbers

    def _exchanged(self, scored: ScoredRollout, draw: Draw) -> tuple[ScoredRollout, torch.Tensor]:
        group = self.args.completions_per_question
        zero_variance_Q = zero_variance(scored.totals(), group)
        tries = self.args.resample_tries if self.args.zero_variance_groups == "resample" else 0
        for attempt in range(tries):
            # Every process samples as many, because they are scored together.
            wanted = int(self.accelerator.gather(zero_variance_Q.sum().view(1)).max())
            if not wanted:
                break
            _, rows = self.fresh(wanted, f"fresh/{attempt}")
            fresh = draw(rows, f"resample/{attempt}")
            scored, zero_variance_Q = replace_groups(
                scored, fresh, zero_variance_Q, zero_variance(fresh.totals(), group), group
            )
        return scored, zero_variance_Q


def level_curriculum(dataset: Any, args: PPOConfig) -> LevelCurriculum | None:
    if not args.curriculum:
        return None
    if "level" not in (getattr(dataset, "column_names", None) or ()):
        raise ValueError("curriculum=true needs the column 'level'; add it to the data")
    return LevelCurriculum(
        [str(level) for level in dataset["level"]],
        seed=args.seed,
        decay=args.curriculum_decay,
        floor=args.curriculum_floor,
    )
