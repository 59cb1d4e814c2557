"""From a micro-batch and its scores to the loss of PPO.

loss = sum over tokens of (policy + value_coef * value - entropy_coef * entropy
       [+ kl_coef * KL])  /  tokens of the minibatch, or of a minibatch on average (token_mean)
       [+ positive_nll_coef * NLL of right completions] [+ supervised_coef * SFT loss]
"""

import torch

from pipeline.ppo.kl import k3, kl_penalty
from pipeline.ppo.losses import policy_loss, value_loss
from pipeline.ppo.metrics import MeanSums, PPOLog
from pipeline.ppo.minibatches import Batch
from pipeline.ppo.options import PPOOptions
from pipeline.scoring import Scores


def token_losses(
    scores: Scores,
    inputs: Batch,
    options: PPOOptions,
    log: PPOLog | MeanSums,
    *,
    kl_coef: float = 0.0,
    policy_weight: float = 1.0,
) -> torch.Tensor:
    """Return loss_BC, PPO's loss of each token, and log its parts.

    Args:
        scores: log-probabilities, entropy and values of the micro-batch, with gradients.
        inputs: a micro-batch of `pipeline.ppo.batch.training_batch`.
        kl_coef: weight of the KL from `ref_logprobs`, where `inputs` has them (kl_in=loss).
        policy_weight: 0.0 trains the value head alone, and every parameter still has a gradient for
            the processes to reduce.
    """
    mask_BC = inputs["completion_mask"]
    policy_BC, clipped_BC = policy_loss(
        scores.logprobs_BC,
        inputs["old_logprobs"],
        inputs["advantages"],
        clip=options.clip,
        clip_high=options.clip_high,
        dual_clip=options.dual_clip,
    )
    if "policy_mask" in inputs:  # the mean below is still over all tokens (arXiv:2506.01939)
        policy_BC = policy_BC * inputs["policy_mask"]
        clipped_BC = clipped_BC & inputs["policy_mask"]
    clipped_loss_BC = policy_BC
    value_BC, _ = value_loss(
        scores.values_BC, inputs["old_values"], inputs["returns"], clip=options.value_clip
    )
    if options.entropy_coef:  # without it the entropy needs no gradient
        policy_BC = policy_BC - options.entropy_coef * scores.entropy_BC
    loss_BC = options.value_coef * value_BC + policy_weight * policy_BC
    if kl_coef and "ref_logprobs" in inputs:
        kl_BC = kl_penalty(
            scores.logprobs_BC, inputs["ref_logprobs"], mask_BC, estimator=options.kl_estimator
        )
        loss_BC = loss_BC + policy_weight * kl_coef * kl_BC
    log.means(
        {
            "loss/policy": clipped_loss_BC,
            "loss/value": value_BC,
            "entropy": scores.entropy_BC,
            "clipfrac": clipped_BC.float(),
            "approx_kl": k3(inputs["old_logprobs"], scores.logprobs_BC.detach(), mask_BC),
        },
        mask_BC,
    )
    return loss_BC


def micro_batch_loss(
    scores: Scores,
    inputs: Batch,
    options: PPOOptions,
    log: PPOLog | MeanSums,
    *,
    kl_coef: float,
    warming_up: bool,
    processes: int,
    supervised_loss: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return this micro-batch's share of its minibatch's loss.

    It is a sum over tokens, divided by the tokens of the minibatch on all processes. The processes'
    gradients are averaged afterwards, hence the factor `processes`.
    """
    policy_weight = 0.0 if warming_up else 1.0
    mask_BC = inputs["completion_mask"]
    loss_BC = token_losses(
        scores, inputs, options, log, kl_coef=kl_coef, policy_weight=policy_weight
    )
    # A minibatch in which no completion has an outcome has no tokens.
    loss = (loss_BC * mask_BC).sum() / (inputs["minibatch_tokens"].clamp_min(1) / processes)
    if supervised_loss is not None:
        loss = loss + options.supervised_coef * supervised_loss
    if "right" in inputs:
        # Likelihood of the policy's own right completions (VAPO, arXiv:2504.05118).
        mask_BC = mask_BC & inputs["right"].unsqueeze(1)
        log.means({"loss/positive": -scores.logprobs_BC}, mask_BC)
        tokens = inputs["minibatch_right_tokens"].clamp_min(1) / processes
        nll = -options.positive_nll_coef * (scores.logprobs_BC * mask_BC).sum() / tokens
        loss = loss + policy_weight * nll
    return loss


def evaluation_loss(
    scores: Scores, inputs: Batch, options: PPOOptions, log: PPOLog
) -> torch.Tensor:
    """Return the mean loss over the tokens of an evaluation batch, without the KL penalty."""
    mask_BC = inputs["completion_mask"]
    loss_BC = token_losses(scores, inputs, options, log)
    return (loss_BC * mask_BC).sum() / mask_BC.sum().clamp_min(1)
