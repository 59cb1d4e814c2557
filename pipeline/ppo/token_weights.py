"""Which tokens have a policy loss: those where the policy had a choice.

Most tokens of a thought follow from what stands before them. arXiv:2506.01939 finds that RL with
the 20% of tokens of highest entropy does as well as with all, or better.
"""

from collections.abc import Callable

import torch


def high_entropy_mask(
    entropy_BC: torch.Tensor,
    mask_BC: torch.Tensor,
    share: float,
    gather: Callable[[torch.Tensor], torch.Tensor] = lambda x: x,
) -> torch.Tensor:
    """Return policy_mask_BC: the `share` of the tokens in the mask that have the highest entropy.

    The threshold is that of all processes; tokens that equal it are included.

    Args:
        entropy_BC: of the policy that sampled the tokens, in nats.
        gather: concatenates a tensor of any length from all processes.

    >>> entropy_BC = torch.tensor([[0.1, 0.9, 0.0, 0.5]])
    >>> high_entropy_mask(entropy_BC, torch.ones(1, 4, dtype=torch.bool), 0.5).tolist()
    [[False, True, False, True]]
    """
    entropies_N = gather(entropy_BC[mask_BC].float())
    if not len(entropies_N):
        return mask_BC
    kept = max(1, round(share * len(entropies_N)))
    threshold = entropies_N.topk(kept).values[-1]
    return mask_BC & (entropy_BC >= threshold)


def gather_any_length(
    gather: Callable[[torch.Tensor], torch.Tensor], x_N: torch.Tensor
) -> torch.Tensor:
    """Return the concatenation over processes of tensors of different lengths, none of them NaN."""
    count = gather(torch.tensor([len(x_N)], device=x_N.device))
    padded = x_N.new_full((int(count.max()),), torch.nan)
    padded[: len(x_N)] = x_N
    everything = gather(padded)
    return everything[~everything.isnan()]
