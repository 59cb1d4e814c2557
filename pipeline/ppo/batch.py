"""The training batch of a rollout: rewards of tokens, KL penalty, advantages, returns."""

import torch

from pipeline.ppo.advantages import (
    estimate_advantages,
    masked_moments,
    masked_sums,
    overlong,
    place_rewards,
    standardize,
    standardize_groups,
)
from pipeline.ppo.groups import ScoredRollout
from pipeline.ppo.kl import FixedKL, kl_penalty
from pipeline.ppo.metrics import PPOLog
from pipeline.ppo.minibatches import Batch
from pipeline.ppo.options import PPOOptions
from pipeline.ppo.values import TokenValues


def training_batch(
    scored: ScoredRollout,
    counts_B: torch.Tensor,
    options: PPOOptions,
    log: PPOLog,
    *,
    kl: FixedKL,
    ref_logprobs_BC: torch.Tensor | None = None,
    values: TokenValues | None = None,
    policy_mask_BC: torch.Tensor | None = None,
    training: bool = True,
) -> tuple[Batch, torch.Tensor, float | None]:
    """Return (batch, rewards_BC, mean KL from the reference): what the update reads.

    A completion that does not count, or has no outcome, has no token in `completion_mask`. The mean
    KL is over the tokens of all processes; None without reference or tokens.

    Args:
        values: V in the policy's advantages; default: the value head's, of the rollout. The
            returns are the value head's targets and always use its own values.
        policy_mask_BC: tokens with a policy loss, of those in `completion_mask`; default: all.
    """
    rollout = scored.rollout
    has_outcome_B = ~scored.outcomes_B.isnan()
    mask_BC = rollout.mask_completion_BC & (has_outcome_B & counts_B).unsqueeze(1)
    rewards_BC = _rewards(scored, has_outcome_B, options, log, training=training) * mask_BC
    batch, mean_kl = {}, None
    if ref_logprobs_BC is not None:
        kl_BC = kl_penalty(
            rollout.logprobs_BC, ref_logprobs_BC, mask_BC, estimator=options.kl_estimator
        )
        if options.kl_in == "reward":
            rewards_BC = rewards_BC - kl.coef * kl_BC
        else:
            batch["ref_logprobs"] = ref_logprobs_BC
        mean_kl = log.means({"kl": kl_BC}, mask_BC).get("kl")
        log.add("kl_coef", kl.coef)
    advantages_BC, returns_BC = estimate_advantages(
        rewards_BC,
        rollout.values_BC,
        mask_BC,
        gamma=options.gamma,
        lam=options.lam,
        value_lam=options.value_lam,
        lam_alpha=options.lam_alpha,
        rloo_group=options.completions_per_question if options.rloo_baseline and training else None,
        step_lam=options.step_lam,
        step_ends=_step_ends(scored, values),
        policy_values_BC=None if values is None else values.values_BC,
    )
    if options.normalize_advantages == "batch" or not training:
        sums = log.accelerator.reduce(masked_sums(advantages_BC, mask_BC), reduction="sum")
        advantages_BC = standardize(advantages_BC, mask_BC, masked_moments(sums))
    elif options.normalize_advantages == "group":
        group = options.completions_per_question
        advantages_BC = standardize_groups(advantages_BC, mask_BC, group)
    log.explained_variance(rollout.values_BC, returns_BC, mask_BC)
    log.means({"value": rollout.values_BC, "return": returns_BC}, mask_BC)
    if options.positive_nll_coef:
        batch["right"] = scored.outcomes_B >= options.right_outcome
    if policy_mask_BC is not None:
        batch["policy_mask"] = policy_mask_BC & mask_BC
        log.means({"policy_tokens": batch["policy_mask"].float()}, mask_BC)
    batch |= {
        "prompt_ids": rollout.prompt_ids_BP,
        "prompt_mask": rollout.mask_prompt_BP,
        "completion_ids": rollout.completion_ids_BC,
        "completion_mask": mask_BC,
        "old_logprobs": rollout.logprobs_BC,
        "old_values": rollout.values_BC,
        "advantages": advantages_BC,
        "returns": returns_BC,
    }
    return batch, rewards_BC, mean_kl


def without_tokens(batch: Batch) -> Batch:
    """Return the batch with an empty completion mask and every float 0, so that it has no loss."""
    return {
        name: torch.zeros_like(x) if x.is_floating_point() or name == "completion_mask" else x
        for name, x in batch.items()
    }


def _step_ends(scored: ScoredRollout, values: TokenValues | None) -> list[list[int]] | None:
    """Return the last token of each step of each completion: the steps of the values where these
    have steps, else the steps that have rewards; None without either."""
    if values is not None and values.step_ends is not None:
        return [list(ends) for ends in values.step_ends]
    if scored.steps is None:
        return None
    return [[token for token, _ in steps] for steps in scored.steps]


def _rewards(
    scored: ScoredRollout,
    has_outcome_B: torch.Tensor,
    options: PPOOptions,
    log: PPOLog,
    *,
    training: bool,
) -> torch.Tensor:
    """Return rewards_BC: step rewards on their tokens, the outcome on the last token, less the
    overlong penalty in training."""
    rollout = scored.rollout
    outcomes_B = torch.where(has_outcome_B, scored.outcomes_B, 0.0)
    if options.overlong_penalty and training:
        overlong_B = overlong(
            rollout.mask_completion_BC.sum(dim=1),
            rollout.truncated_B,
            budget=options.max_completion_length,
            buffer=options.overlong_buffer,
        )
        outcomes_B = outcomes_B - options.overlong_penalty * overlong_B
        share = log.accelerator.reduce(overlong_B.mean(), reduction="mean")
        log.add("reward/overlong", -options.overlong_penalty * share.item())
    return place_rewards(outcomes_B, rollout.mask_completion_BC, scored.steps)
