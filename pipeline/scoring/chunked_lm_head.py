"""Log-probability and entropy of tokens without the logits of all tokens in memory.

Logits of few tokens are kept for the backward pass. Those of many are computed in chunks of tokens,
dropped, and recomputed by the backward pass, so memory per token does not depend on the vocabulary.
"""

from collections.abc import Iterator

import torch
from torch import nn
from torch.autograd.function import FunctionCtx
from torch.utils.checkpoint import checkpoint

# Logits of a chunk: 128 MiB in float32, 512 MiB on a GPU. Smaller matrix products are slower.
CHUNK_LOGITS, CHUNK_LOGITS_GPU = 2**25, 2**27
# With a trained LM head, up to so many logits per weight are kept for the backward pass: half the
# memory of the weights, their gradient and Adam's two moments.
KEPT_LOGITS_PER_WEIGHT = 2
CACHED_LOGITS = 2**19  # 2 MiB in float32, which fits a CPU cache


def head_scores(
    lm_head: nn.Module, hidden_ND: torch.Tensor, ids_N: torch.Tensor, temperature: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """(logprobs_N, entropy_N) in nats of tokens, from the inputs of the LM head that predict them.

    `temperature` divides the logits.
    """
    if type(lm_head) is nn.Linear and not lm_head._forward_hooks:
        return linear_scores(hidden_ND, lm_head.weight, lm_head.bias, ids_N, temperature)

    def scores(hidden_nD: torch.Tensor, ids_n: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return token_scores(lm_head(hidden_nD), ids_n, temperature)

    # A head with adapters or hooks must be called itself.
    size = _chunk_size(ids_N.device, len(lm_head.weight))
    chunks = [
        checkpoint(scores, hidden_nD, ids_n, use_reentrant=False)
        for hidden_nD, ids_n in zip(hidden_ND.split(size), ids_N.split(size), strict=True)
    ]
    logprobs, entropies = zip(*chunks, strict=True)
    return torch.cat(logprobs), torch.cat(entropies)


def token_scores(
    logits_BCV: torch.Tensor, ids_BC: torch.Tensor, temperature: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """(logprobs_BC, entropy_BC) in nats under softmax(logits / temperature); differentiable."""
    logprobs_BCV = torch.log_softmax(logits_BCV.float() / temperature, dim=-1)
    chosen_BC = logprobs_BCV.gather(-1, ids_BC.unsqueeze(-1)).squeeze(-1)
    entropy_BC = -(logprobs_BCV.exp() * logprobs_BCV).sum(dim=-1)
    return chosen_BC, entropy_BC


def linear_scores(
    hidden_ND: torch.Tensor,
    weight_VD: torch.Tensor,
    bias_V: torch.Tensor | None,
    ids_N: torch.Tensor,
    temperature: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(logprobs_N, entropy_N) in nats under softmax((hidden @ weight.T + bias) / temperature).

    Values and gradients equal those of `token_scores` applied to the logits.
    """
    device = hidden_ND.device.type
    dtype = weight_VD.dtype
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    with torch.autocast(device, enabled=False):
        return _LinearScores.apply(hidden_ND, weight_VD, bias_V, ids_N, temperature, dtype)


class _LinearScores(torch.autograd.Function):
    """`linear_scores` with an analytic gradient.

    With x = logits / temperature, p = softmax(x), H the entropy and a the token:

        d log p(a) / dx = onehot(a) - p        dH / dx = -p * (log p + H)

    Matrix products are in `dtype`, everything else and all sums in at least float32.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        hidden_ND: torch.Tensor,
        weight_VD: torch.Tensor,
        bias_V: torch.Tensor | None,
        ids_N: torch.Tensor,
        temperature: float,
        dtype: torch.dtype,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        kept = KEPT_LOGITS_PER_WEIGHT * weight_VD.numel() if ctx.needs_input_grad[1] else 0
        chunks = _chunks(ids_N, len(weight_VD), kept)
        logits_of = _Logits(hidden_ND, weight_VD, bias_V, temperature, dtype)
        logprobs_N, entropy_N, max_N, log_sum_N = _at_least_float32(
            hidden_ND.new_empty(4, len(ids_N))
        )
        exp_mV = None
        for chunk in chunks:
            for x_mV, rows in _cache_blocks(logits_of(chunk), chunk):
                chosen_m = x_mV.gather(1, ids_N[rows].unsqueeze(1)).squeeze(1)
                torch.amax(x_mV, dim=1, out=max_N[rows])
                x_mV -= max_N[rows].unsqueeze(1)
                exp_mV = torch.empty_like(x_mV) if exp_mV is None else exp_mV
                p_mV = torch.exp(x_mV, out=exp_mV[: len(x_mV)])
                sum_m = p_mV.sum(dim=1)
                log_sum_N[rows] = sum_m.log()
                logprobs_N[rows] = chosen_m - max_N[rows] - log_sum_N[rows]
                entropy_N[rows] = log_sum_N[rows] - p_mV.mul_(x_mV).sum(dim=1) / sum_m
        ctx.save_for_backward(hidden_ND, weight_VD, bias_V, ids_N, max_N, log_sum_N, entropy_N)
        ctx.temperature, ctx.dtype, ctx.chunks = temperature, dtype, chunks
        ctx.cast_VD = logits_of.weight_VD  # the backward pass need not cast again
        ctx.set_materialize_grads(False)  # None says without reading a tensor that it is not used
        # Logits less the maximum of their row.
        ctx.kept_NV = logits_of.buffer_nV if len(chunks) == 1 else None
        return logprobs_N, entropy_N

    @staticmethod
    def backward(
        ctx: FunctionCtx, grad_logprobs_N: torch.Tensor | None, grad_entropy_N: torch.Tensor | None
    ) -> tuple:
        hidden_ND, weight_VD, bias_V, ids_N, max_N, log_sum_N, entropy_N = ctx.saved_tensors
        if grad_logprobs_N is None:
            grad_logprobs_N = torch.zeros_like(entropy_N)
        kept_NV, ctx.kept_NV = ctx.kept_NV, None  # overwritten by the gradient
        logits_of = _Logits(hidden_ND, ctx.cast_VD, bias_V, ctx.temperature, ctx.dtype)
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_hidden_ND = torch.empty_like(hidden_ND) if needs_hidden else None
        grad_weight_VD: torch.Tensor | None = None
        grad_bias_V = _at_least_float32(torch.zeros_like(bias_V)) if needs_bias else None
        for chunk in ctx.chunks:
            grad_nV = logits_of(chunk) if kept_NV is None else kept_NV
            for x_mV, rows in _cache_blocks(grad_nV, chunk):
                if kept_NV is None:
                    x_mV -= max_N[rows].unsqueeze(1)
                _logits_gradient_(
                    x_mV.sub_(log_sum_N[rows].unsqueeze(1)),
                    ids_N[rows],
                    entropy_N[rows],
                    grad_logprobs_N[rows] / ctx.temperature,
                    None if grad_entropy_N is None else grad_entropy_N[rows] / ctx.temperature,
                )
            if grad_bias_V is not None:
                grad_bias_V += grad_nV.sum(dim=0)
            grad_nV = grad_nV.to(ctx.dtype)
            if grad_hidden_ND is not None:
                grad_hidden_ND[chunk] = grad_nV @ logits_of.weight_VD
            if needs_weight:
                grad_weight_VD = _add_product(grad_weight_VD, grad_nV.T, logits_of.hidden_ND[chunk])
        return (
            grad_hidden_ND,
            None if grad_weight_VD is None else grad_weight_VD.to(weight_VD),
            None if grad_bias_V is None else grad_bias_V.to(bias_V),
            *(None, None, None),
        )


class _Logits:
    """Computes logits / temperature of a chunk, always in the same buffer: allocation is slow."""

    def __init__(
        self,
        hidden_ND: torch.Tensor,
        weight_VD: torch.Tensor,
        bias_V: torch.Tensor | None,
        temperature: float,
        dtype: torch.dtype,
    ):
        self.hidden_ND = hidden_ND.to(dtype)
        self.weight_VD = weight_VD.to(dtype)
        self.bias_V = None if bias_V is None else bias_V.to(dtype)
        self.temperature = temperature
        self.dtype = torch.promote_types(dtype, torch.float32)
        self.buffer_nV: torch.Tensor | None = None

    def __call__(self, chunk: slice) -> torch.Tensor:
        hidden_nD = self.hidden_ND[chunk]
        if self.buffer_nV is None:  # the first chunk is the longest
            shape = len(hidden_nD), len(self.weight_VD)
            self.buffer_nV = hidden_nD.new_empty(shape, dtype=self.dtype)
        x_nV = self.buffer_nV[: len(hidden_nD)]
        if x_nV.dtype != hidden_nD.dtype:
            x_nV.copy_(nn.functional.linear(hidden_nD, self.weight_VD, self.bias_V))
        elif self.bias_V is None:
            torch.mm(hidden_nD, self.weight_VD.T, out=x_nV)
        else:
            torch.addmm(self.bias_V, hidden_nD, self.weight_VD.T, out=x_nV)
        return x_nV if self.temperature == 1.0 else x_nV.div_(self.temperature)


def _cache_blocks(x_nV: torch.Tensor, chunk: slice) -> Iterator[tuple[torch.Tensor, slice]]:
    """(rows of the chunk, their slice of all tokens), a few at a time.

    On a CPU all operations after the first find the rows in its cache; a GPU takes all at once.
    """
    size = len(x_nV)
    if x_nV.device.type == "cpu":
        size = max(1, CACHED_LOGITS // x_nV.shape[1])
    for first in range(0, len(x_nV), size):
        x_mV = x_nV[first : first + size]
        yield x_mV, slice(chunk.start + first, chunk.start + first + len(x_mV))


def _at_least_float32(x: torch.Tensor) -> torch.Tensor:
    """x in float32, or in float64 if it is that already."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _add_product(
    sum_VD: torch.Tensor | None, left_Vn: torch.Tensor, right_nD: torch.Tensor
) -> torch.Tensor:
    """sum_VD + left @ right in at least float32, in place.

    With sum_VD=None the product itself, which avoids zero-initializing the accumulator.
    """
    if sum_VD is None:
        return _at_least_float32(left_Vn @ right_nD)
    if sum_VD.dtype == left_Vn.dtype:
        return sum_VD.addmm_(left_Vn, right_nD)
    return sum_VD.add_(left_Vn @ right_nD)


def _logits_gradient_(
    logp_mV: torch.Tensor,
    ids_m: torch.Tensor,
    entropy_m: torch.Tensor,
    grad_logprobs_m: torch.Tensor,
    grad_entropy_m: torch.Tensor | None,
) -> None:
    """Overwrite logp_mV with the gradient of the logits; None: the entropy has no gradient."""
    if grad_entropy_m is not None:
        p_mV = logp_mV.exp()
        logp_mV.add_(entropy_m.unsqueeze(1)).mul_(grad_entropy_m.unsqueeze(1))
        logp_mV.add_(grad_logprobs_m.unsqueeze(1)).mul_(p_mV).neg_()
    else:
        logp_mV.exp_().mul_(-grad_logprobs_m.unsqueeze(1))
    logp_mV.scatter_add_(1, ids_m.unsqueeze(1), grad_logprobs_m.unsqueeze(1))


def _chunks(ids_N: torch.Tensor, vocabulary: int, kept: int) -> list[slice]:
    """Slices of the tokens: one if all logits fit in `kept` or in a chunk, else one per chunk.

    Without tokens there is one empty slice.
    """
    size = max(kept // vocabulary, _chunk_size(ids_N.device, vocabulary))
    if len(ids_N) > size:
        size = _chunk_size(ids_N.device, vocabulary)
    return [slice(first, first + size) for first in range(0, max(1, len(ids_N)), size)]


def _chunk_size(device: torch.device, vocabulary: int) -> int:
    """Tokens of a chunk."""
    return max(1, (CHUNK_LOGITS if device.type == "cpu" else CHUNK_LOGITS_GPU) // vocabulary)
