"""Scores of rollouts by the policy, its reference, and any other model."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import nn

from pipeline.model.unsharded import is_sharded
from pipeline.ppo.rollout import score_rollout
from pipeline.ppo.rollout_models import RolloutModels
from pipeline.records import Rollout
from pipeline.scoring import Scores, score_completions

SCORING_TOKENS = 2**14  # of a chunk of a rollout that is scored, with padding


@dataclass(kw_only=True)
class PolicyScorer:
    """Scores rollouts at the temperature of their samples, in the precision of the accelerator.

    Args:
        policy: () -> the policy as it is trained: wrapped, perhaps divided among processes.
        frozen: () -> the reference model; None where it is the policy without its adapters.
        copies: copies of divided models (FSDP2), made once a rollout; None: no model is divided.
        unsharded_policy: whether the reference may be made of the copy of the policy.
        in_one_chunk: whether every process must take as many forwards as the others (DeepSpeed).
    """

    accelerator: Accelerator
    temperature: float
    policy: Callable[[], nn.Module]
    frozen: Callable[[], nn.Module | None]
    copies: RolloutModels | None
    unsharded_policy: bool
    in_one_chunk: bool

    def by(self, model: nn.Module) -> Callable[..., Scores]:
        """Return a function of (prompt ids, mask, completion ids, mask): the scores by `model`."""

        def score(*tensors: torch.Tensor) -> Scores:
            with self.accelerator.autocast():
                return score_completions(model, *tensors, temperature=self.temperature)

        return score

    def rollout(self, model: nn.Module, samples: Rollout) -> Scores:
        """Return the scores of a rollout by a model, in chunks that bound memory by tokens."""
        shared = self.in_one_chunk or is_sharded(model)
        max_tokens = None if shared else SCORING_TOKENS
        return score_rollout(self.by(model), samples, max_tokens=max_tokens)

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
