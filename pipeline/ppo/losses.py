"""PPO's losses (arXiv:1707.06347), one number per token: pure functions of tensors.

The caller sums over tokens and divides by their number, so that a minibatch cut into micro-batches,
or spread over processes, has exactly the gradient of the whole.
"""

import torch


def policy_loss(
    logprobs_BC: torch.Tensor,
    old_logprobs_BC: torch.Tensor,
    advantages_BC: torch.Tensor,
    *,
    clip: float,
    clip_high: float | None = None,
    dual_clip: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (loss_BC, clipped_BC): the negative clipped surrogate objective of PPO, equation 7.

        ratio = pi(a_t) / pi_old(a_t)
        loss  = -min(ratio * A, clip(ratio, 1 - clip, 1 + clip_high) * A)
        loss  = min(loss, -dual_clip * A)     where A < 0   (dual clip, arXiv:1912.09729)

    clipped_BC is True where a clip makes the gradient 0. `clip_high` defaults to `clip`; a larger
    one lets the probability of rare tokens grow more (DAPO, arXiv:2503.14476, 3.1). `dual_clip`
    bounds the loss of a token with a large ratio and a negative advantage; None: no bound.
    """
    ratio_BC = (logprobs_BC - old_logprobs_BC).exp()
    bounded_BC = ratio_BC.clamp(1 - clip, 1 + (clip if clip_high is None else clip_high))
    unclipped_BC, bounded_loss_BC = -ratio_BC * advantages_BC, -bounded_BC * advantages_BC
    loss_BC = torch.maximum(unclipped_BC, bounded_loss_BC)
    clipped_BC = bounded_loss_BC > unclipped_BC
    if dual_clip is None:
        return loss_BC, clipped_BC
    ceiling_BC = -dual_clip * advantages_BC
    capped_BC = (advantages_BC < 0) & (loss_BC > ceiling_BC)
    return torch.where(capped_BC, ceiling_BC, loss_BC), clipped_BC | capped_BC


def value_loss(
    values_BC: torch.Tensor,
    old_values_BC: torch.Tensor,
    returns_BC: torch.Tensor,
    *,
    clip: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (loss_BC, clipped_BC): half the squared error, with V clipped around the rollout's.

        loss = 0.5 * max((V - R)^2, (V_old + clip(V - V_old, -clip, clip) - R)^2)

    `clip=None` does not clip.
    """
    unclipped_BC = (values_BC - returns_BC).square()
    if clip is None:
        return 0.5 * unclipped_BC, torch.zeros_like(unclipped_BC, dtype=torch.bool)
    near_BC = values_BC.clamp(old_values_BC - clip, old_values_BC + clip)
    clipped_BC = (near_BC - returns_BC).square()
    return 0.5 * torch.maximum(unclipped_BC, clipped_BC), clipped_BC > unclipped_BC
