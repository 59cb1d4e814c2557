"""Scores of rollouts by the policy, its reference, and any other model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from accelerate import Accelerator
from torch import nn

from pipeline.model.unsharded import is_sharded
from pipeline.ppo.minibatches import SCORED, Batch, MicroBatch
from pipeline.ppo.rollout import score_rollout
from pipeline.ppo.rollout_models import RolloutModels
from pipeline.records import Rollout
from pipeline.scoring import (
    Completions,
    Scores,
    prepare_completions,
    score_completions,
    score_prepared,
    supports_packing,
)
from pipeline.training.token_budget import most_of_processes, one_process

# Tokens of a chunk of a rollout that is scored. A padded chunk has the logits of all its tokens;
# small chunks stay in the cache of a CPU.
SCORING_TOKENS, SCORING_TOKENS_PADDED, SCORING_TOKENS_CPU = 2**14, 2**12, 2**11


@dataclass(kw_only=True)
class PolicyScorer:
    """Scores rollouts at the temperature of their samples, in the precision of the accelerator.

    Args:
        policy: () -> the policy as it is trained: wrapped, perhaps divided among processes.
        frozen: () -> the reference model; None where it is the policy without its adapters.
        copies: copies of divided models (FSDP2), made once a rollout; None: no model is divided.
        unsharded_policy: whether the reference may be made of the copy of the policy.
        together: whether every process must take as many forwards as the others (DeepSpeed).
        max_tokens: most tokens of a chunk of a rollout that is scored; default: by device
    """

    accelerator: Accelerator
    temperature: float
    policy: Callable[[], nn.Module]
    frozen: Callable[[], nn.Module | None]
    copies: RolloutModels | None
    unsharded_policy: bool
    together: bool
    max_tokens: int | None = None

    def by(self, model: nn.Module) -> Callable[..., Scores]:
        """Return a function of (prompt ids, mask, completion ids, mask): the scores by `model`."""

        def score(*tensors: torch.Tensor) -> Scores:
            with self.accelerator.autocast():
                return score_completions(model, *tensors, temperature=self.temperature)

        return score

    def prepare(
        self, model: nn.Module, rollout: Batch, micro_batches: Sequence[MicroBatch]
    ) -> None:
        """Make the completions of a rollout's micro-batches ready for `model`, on the CPU."""
        on_cpu = [rollout[name].cpu() for name in SCORED]
        with self.accelerator.autocast():
            for batch in micro_batches:
                batch.completions = prepare_completions(
                    model, *(x[batch.rows] for x in on_cpu), to=self.accelerator.device
                )

    def prepared(self, model: nn.Module, completions: Completions) -> Scores:
        """Return the scores of completions that were made ready for `model`."""
        with self.accelerator.autocast():
            return score_prepared(model, completions, temperature=self.temperature)

    def rollout(self, model: nn.Module, samples: Rollout) -> Scores:
        """Return the scores of a rollout by a model, in chunks that bound memory by tokens."""
        shared = self.together or is_sharded(model)
        padded = not supports_packing(model)
        limit = SCORING_TOKENS_PADDED if padded else SCORING_TOKENS
        if self.accelerator.device.type == "cpu":
            limit = SCORING_TOKENS_CPU
        return score_rollout(
            self.by(model),
            samples,
            None,
            self.max_tokens or limit,
            padded=padded,
            most_of_processes=partial(most_of_processes, self.accelerator)
            if shared
            else one_process,
        )

    @torch.no_grad()
    def reference(self, samples: Rollout) -> Scores:
        """Return the scores of the reference model, or of the policy without its adapters."""
        model = self.frozen()
        if self.copies is not None:
            model = self.copies.reference()
        if model is not None:
            return self.rollout(model, samples)
        model = self.policy()
        if self.copies is not None and self.unsharded_policy:
            model = self.copies.policy(model)
        with self.accelerator.unwrap_model(model).disable_adapter():
            return self.rollout(model, samples)
