"""From the logits of the next token to a token and its log-probability."""

import torch

# Tokens of a large vocabulary that are summed before any is looked at; up to `SMALL` is not large.
BLOCK, SMALL = 64, 1024


def sample_tokens(
    logits_nV: torch.Tensor, noise_n: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(tokens_n, logprobs_n): a uniform number in [0, 1) picks a row's token by the inverse of its
    distribution function, softmax(logits).

    A running sum over a large vocabulary costs more than all the rest of a draw: there a block of
    tokens is drawn first, and one of its tokens after it.

    >>> logits = torch.tensor([[1.0, 0.0, 3.0]] * 3).log()
    >>> sample_tokens(logits, torch.tensor([0.0, 0.2, 0.3]))[0].tolist()
    [0, 0, 2]
    """
    if logits_nV.shape[1] <= SMALL:
        logprobs_nV = torch.log_softmax(logits_nV, dim=-1)
        tokens_n = _place(logprobs_nV.exp().cumsum(dim=-1), noise_n)
        return tokens_n, logprobs_nV.gather(1, tokens_n.unsqueeze(1)).squeeze(1)
    top_n1 = logits_nV.amax(dim=-1, keepdim=True)
    weights_nV = (logits_nV - top_n1).exp_()
    blocks_nb = _block_sums(weights_nV)
    upto_nb = blocks_nb.cumsum(dim=-1)
    block_n1 = _place(upto_nb, noise_n).unsqueeze(1)
    tokens_n1 = _in_block(weights_nV, upto_nb, blocks_nb, block_n1, noise_n)
    chosen_n1 = logits_nV.gather(1, tokens_n1) - top_n1 - upto_nb[:, -1:].log()
    return tokens_n1.squeeze(1), chosen_n1.squeeze(1)


def logprobs_of(tokens_n: torch.Tensor, logits_nV: torch.Tensor) -> torch.Tensor:
    """logprobs_n of given tokens.

    >>> logprobs_of(torch.tensor([0]), torch.zeros(1, 4)).exp().tolist()
    [0.25]
    """
    return logits_nV.gather(1, tokens_n.unsqueeze(1)).squeeze(1) - logits_nV.logsumexp(dim=-1)


def _block_sums(weights_nV: torch.Tensor) -> torch.Tensor:
    vocabulary = weights_nV.shape[1]
    whole = vocabulary - vocabulary % BLOCK
    blocks_nb = weights_nV[:, :whole].unflatten(1, (-1, BLOCK)).sum(dim=-1)
    if whole == vocabulary:
        return blocks_nb
    return torch.cat([blocks_nb, weights_nV[:, whole:].sum(dim=-1, keepdim=True)], dim=1)


def _in_block(
    weights_nV: torch.Tensor,
    upto_nb: torch.Tensor,
    blocks_nb: torch.Tensor,
    block_n1: torch.Tensor,
    noise_n: torch.Tensor,
) -> torch.Tensor:
    """tokens_n1 of the block: what the noise has left behind the blocks before it decides."""
    last = weights_nV.shape[1] - 1
    first_n1 = block_n1 * BLOCK
    columns_nk = first_n1 + torch.arange(BLOCK, device=first_n1.device)
    inside_nk = weights_nV.gather(1, columns_nk.clamp_max(last))
    upto_nk = inside_nk.masked_fill_(columns_nk > last, 0.0).cumsum(dim=-1)
    before_n1 = upto_nb.gather(1, block_n1) - blocks_nb.gather(1, block_n1)
    left_n1 = noise_n.unsqueeze(1) * upto_nb[:, -1:] - before_n1
    # Rounding must lead to no other block, nor to a token of weight 0 at either end of this one.
    left_n1 = left_n1.clamp_min(0.0).minimum(upto_nk[:, -1:] * (1 - 1e-6))
    return first_n1 + torch.searchsorted(upto_nk, left_n1, right=True)


def _place(upto_nV: torch.Tensor, noise_n: torch.Tensor) -> torch.Tensor:
    target_n1 = (noise_n * upto_nV[:, -1]).unsqueeze(1)
    place_n = torch.searchsorted(upto_nV, target_n1, right=True).squeeze(1)
    return place_n.clamp_max(upto_nV.shape[1] - 1)
