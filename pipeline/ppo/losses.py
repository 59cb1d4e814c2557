"""PPO's losses (arXiv:1707.06347), one number a token: pure functions of tensors.

The sum over tokens and the division by their number are the caller's, so that a minibatch cut into
micro-batches, or spread over processes, has exactly the gradient of the whole.
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
    """(loss_BC, clipped_BC): the clipped surrogate of PPO, equation 7, with its sign turned.

        ratio = pi(a_t) / pi_old(a_t)
        loss  = -min(ratio * A, clip(ratio, 1 - clip, 1 + clip_high) * A)
        loss  = min(loss, -dual_clip * A)     where A < 0   (dual clip, arXiv:1912.09729)

    clipped_BC is True where a clip holds the gradient back. `clip_high` defaults to `clip`; above
    it, a rare token may rise further than a common one may fall (DAPO, arXiv:2503.14476, 3.1).
    `dual_clip` bounds what one token may cost whose ratio has run away; None leaves it unbounded.
    """
    ratio_BC = (logprobs_BC - old_logprobs_BC).exp()
    bounded_BC = ratio_BC.clamp(1 - clip, 1 + (clip if clip_high is None else clip_high))
    free_BC, held_BC = -ratio_BC * advantages_BC, -bounded_BC * advantages_BC
    loss_BC, clipped_BC = torch.maximum(free_BC, held_BC), held_BC > free_BC
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
    """(loss_BC, clipped_BC): half the squared error, V moving at most `clip` from the rollout's.

        loss = 0.5 * max((V - R)^2, (V_old + clip(V - V_old, -clip, clip) - R)^2)

    `clip=None` leaves V free.
    """
    free_BC = (values_BC - returns_BC).square()
    if clip is None:
        return 0.5 * free_BC, torch.zeros_like(free_BC, dtype=torch.bool)
    near_BC = values_BC.clamp(old_values_BC - clip, old_values_BC + clip)
    held_BC = (near_BC - returns_BC).square()
    return 0.5 * torch.maximum(free_BC, held_BC), held_BC > free_BC
