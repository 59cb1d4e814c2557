"""Sample a token from logits by inverse transform sampling."""

import torch

BLOCK_SIZE = 64  # tokens of a block in a large vocabulary
MAX_DIRECT_VOCABULARY = 1024  # a larger vocabulary is sampled from in two steps, by blocks


def sample_tokens(
    logits_nV: torch.Tensor, uniform_n: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(tokens_n, logprobs_n): tokens sampled from softmax(logits) by the inverse of its CDF.

    A cumulative sum over a large vocabulary would take most of the time. There a block of tokens is
    sampled first, then a token within the block.

    Args:
        logits_nV: float32.
        uniform_n: one random number in [0, 1] per row; 1 is what float32 makes of 1 - 1e-9.

    >>> logits = torch.tensor([[1.0, 0.0, 3.0]] * 3).log()
    >>> sample_tokens(logits, torch.tensor([0.0, 0.2, 0.3]))[0].tolist()
    [0, 0, 2]
    """
    uniform_n = uniform_n.clamp_max(1 - 2**-24)  # 1 would select a token behind the last one
    if logits_nV.shape[1] <= MAX_DIRECT_VOCABULARY:
        logprobs_nV = torch.log_softmax(logits_nV, dim=-1)
        tokens_n = _inverse_cdf(logprobs_nV.exp().cumsum(dim=-1), uniform_n)
        return tokens_n, logprobs_nV.gather(1, tokens_n.unsqueeze(1)).squeeze(1)
    max_n1 = logits_nV.amax(dim=-1, keepdim=True)
    weights_nV = (logits_nV - max_n1).exp_()
    blocks_nb = _block_sums(weights_nV)
    cumulative_nb = blocks_nb.cumsum(dim=-1)
    block_n1 = _inverse_cdf(cumulative_nb, uniform_n).unsqueeze(1)
    tokens_n1 = _sample_in_block(weights_nV, cumulative_nb, blocks_nb, block_n1, uniform_n)
    logprobs_n1 = logits_nV.gather(1, tokens_n1) - max_n1 - cumulative_nb[:, -1:].log()
    return tokens_n1.squeeze(1), logprobs_n1.squeeze(1)


def keep_nucleus(logits_nV: torch.Tensor, top_p_n: torch.Tensor) -> torch.Tensor:
    """The logits with -inf outside of each row's nucleus (top-p sampling, arXiv:1904.09751).

    The nucleus is the smallest set of most probable tokens whose probabilities sum to at least
    top_p; the most probable token is always in it.

    >>> logits = torch.tensor([[0.5, 0.3, 0.2]]).log()
    >>> keep_nucleus(logits, torch.tensor([0.6])).isfinite().tolist()
    [[True, True, False]]
    """
    sorted_nV, order_nV = logits_nV.softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
    before_nV = sorted_nV.cumsum(dim=-1) - sorted_nV
    outside_nV = before_nV >= top_p_n.unsqueeze(1)
    outside_nV[:, 0] = False
    outside_nV[top_p_n >= 1] = False
    return logits_nV.masked_fill(
        torch.zeros_like(outside_nV).scatter(1, order_nV, outside_nV), -torch.inf
    )


def logprobs_of(tokens_n: torch.Tensor, logits_nV: torch.Tensor) -> torch.Tensor:
    """logprobs_n of the given tokens under softmax(logits).

    >>> logprobs_of(torch.tensor([0]), torch.zeros(1, 4)).exp().tolist()
    [0.25]
    """
    return logits_nV.gather(1, tokens_n.unsqueeze(1)).squeeze(1) - logits_nV.logsumexp(dim=-1)


def _block_sums(weights_nV: torch.Tensor) -> torch.Tensor:
    vocabulary = weights_nV.shape[1]
    whole = vocabulary - vocabulary % BLOCK_SIZE
    blocks_nb = weights_nV[:, :whole].unflatten(1, (-1, BLOCK_SIZE)).sum(dim=-1)
    if whole == vocabulary:
        return blocks_nb
    return torch.cat([blocks_nb, weights_nV[:, whole:].sum(dim=-1, keepdim=True)], dim=1)


def _sample_in_block(
    weights_nV: torch.Tensor,
    cumulative_nb: torch.Tensor,
    blocks_nb: torch.Tensor,
    block_n1: torch.Tensor,
    uniform_n: torch.Tensor,
) -> torch.Tensor:
    """tokens_n1 sampled within the given block of each row.

    The random number, scaled to the total weight, less the weight of all earlier blocks, is
    inverted by the cumulative sum of the block.
    """
    last = weights_nV.shape[1] - 1
    first_n1 = block_n1 * BLOCK_SIZE
    columns_nk = first_n1 + torch.arange(BLOCK_SIZE, device=first_n1.device)
    block_weights_nk = weights_nV.gather(1, columns_nk.clamp_max(last))
    cumulative_nk = block_weights_nk.masked_fill_(columns_nk > last, 0.0).cumsum(dim=-1)
    before_n1 = cumulative_nb.gather(1, block_n1) - blocks_nb.gather(1, block_n1)
    remaining_n1 = uniform_n.unsqueeze(1) * cumulative_nb[:, -1:] - before_n1
    # Clamped so that rounding selects neither another block nor a token of weight 0 at its ends.
    remaining_n1 = remaining_n1.clamp_min(0.0).minimum(cumulative_nk[:, -1:] * (1 - 1e-6))
    return first_n1 + torch.searchsorted(cumulative_nk, remaining_n1, right=True)


def _inverse_cdf(cumulative_nV: torch.Tensor, uniform_n: torch.Tensor) -> torch.Tensor:
    """Index of the first entry per row whose cumulative weight exceeds uniform * total."""
    target_n1 = (uniform_n * cumulative_nV[:, -1]).unsqueeze(1)
    index_n = torch.searchsorted(cumulative_nV, target_n1, right=True).squeeze(1)
    return index_n.clamp_max(cumulative_nV.shape[1] - 1)
