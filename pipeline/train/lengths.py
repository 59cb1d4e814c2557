"""What the length of a completion decides: its lambda, and a punishment for running over."""

import torch


def length_adaptive_lambda(mask_BC: torch.Tensor, alpha: float) -> torch.Tensor:
    """lam_B = 1 - 1 / (alpha * length), at least 0 (VAPO, arXiv:2504.05118).

    The weights lam^k of a sum of TD errors add up to 1 / (1 - lam) = alpha * length: the estimate
    looks ahead over the same share of a short completion as of a long one.

    >>> length_adaptive_lambda(torch.ones(1, 40, dtype=torch.bool), alpha=0.05).tolist()
    [0.5]
    """
    lengths_B = mask_BC.sum(dim=1).clamp_min(1).float()
    return (1 - 1 / (alpha * lengths_B)).clamp_min(0.0)


def overlong(
    lengths_B: torch.Tensor, truncated_B: torch.Tensor, *, budget: int, buffer: int
) -> torch.Tensor:
    """overlong_B: how far a completion runs into the last `buffer` tokens of its budget, 0 to 1.

        overlong = clip((length - (budget - buffer)) / buffer, 0, 1)

    Taken from the reward, it is the soft punishment of DAPO (arXiv:2503.14476, equation 13). With
    no buffer it is 1 for what was cut off.

    >>> lengths, cut = torch.tensor([6, 7, 8]), torch.tensor([False, False, True])
    >>> overlong(lengths, cut, budget=8, buffer=2).tolist()
    [0.0, 0.5, 1.0]
    >>> overlong(lengths, cut, budget=8, buffer=0).tolist()
    [0.0, 0.0, 1.0]
    """
    if not buffer:
        return truncated_B.float()
    return (lengths_B - (budget - buffer)).clamp_min(0).float() / buffer
