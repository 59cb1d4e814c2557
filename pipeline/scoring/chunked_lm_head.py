"""Log-probability and entropy of tokens without the scores of the whole vocabulary in memory.

Logits of few tokens stay for the backward pass. Those of many are made for some tokens at a time
and dropped, and the backward pass makes them once more: what is kept a token is then a few numbers,
however large the vocabulary.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

# Logits in memory at once, 128 MiB of float32, on a GPU 512; fewer rows make slower products.
CHUNK_LOGITS, CHUNK_LOGITS_GPU = 2**25, 2**27
# Where the LM head is trained, logits stay that are no more than this times its weights: half of
# what the weights, their gradient and Adam's two moments take.
KEPT_LOGITS_A_WEIGHT = 2
CACHED_LOGITS = 2**19  # 2 MiB, which a processor's cache holds


def head_scores(
    lm_head: nn.Module, hidden_ND: torch.Tensor, ids_N: torch.Tensor, temperature: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """(logprobs_N, entropy_N) in nats of tokens, from what enters the LM head to predict them.

    `temperature` divides the logits.
    """
    if type(lm_head) is nn.Linear and not lm_head._forward_hooks:
        return linear_scores(hidden_ND, lm_head.weight, lm_head.bias, ids_N, temperature)

    def scores(hidden_nD: torch.Tensor, ids_n: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return token_scores(lm_head(hidden_nD), ids_n, temperature)

    # A head with adapters or hooks is more than a product.
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
    """(logprobs_BC, entropy_BC) in nats, of the distribution that was sampled from.

    The entropy is a diagnostic and a bonus; both have gradients.
    """
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

    Equal to `token_scores` of the logits, values and gradients.
    """
    device = hidden_ND.device.type
    dtype = weight_VD.dtype
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    with torch.autocast(device, enabled=False):
        return _LinearScores.apply(hidden_ND, weight_VD, bias_V, ids_N, temperature, dtype)


class _LinearScores(torch.autograd.Function):
    """With x = logits / temperature, p = softmax(x), H the entropy and a the token:

        d log p(a) / dx = onehot(a) - p        dH / dx = -p * (log p + H)

    Products are taken in `dtype`, everything else and every sum in float32 or better.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: torch.Tensor,
        weight_VD: torch.Tensor,
        bias_V: torch.Tensor | None,
        ids_N: torch.Tensor,
        temperature: float,
        dtype: torch.dtype,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        kept = KEPT_LOGITS_A_WEIGHT * weight_VD.numel() if ctx.needs_input_grad[1] else 0
        parts = _parts(ids_N, len(weight_VD), kept)
        logits_of = _Logits(hidden_ND, weight_VD, bias_V, temperature, dtype)
        logprobs_N, entropy_N, top_N, log_sum_N = _wide(hidden_ND.new_empty(4, len(ids_N)))
        spare_mV = None
        for part in parts:
            for x_mV, rows in _in_cache(logits_of(part), part):
                chosen_m = x_mV.gather(1, ids_N[rows].unsqueeze(1)).squeeze(1)
                torch.amax(x_mV, dim=1, out=top_N[rows])
                x_mV -= top_N[rows].unsqueeze(1)
                spare_mV = torch.empty_like(x_mV) if spare_mV is None else spare_mV
                p_mV = torch.exp(x_mV, out=spare_mV[: len(x_mV)])
                sum_m = p_mV.sum(dim=1)
                log_sum_N[rows] = sum_m.log()
                logprobs_N[rows] = chosen_m - top_N[rows] - log_sum_N[rows]
                entropy_N[rows] = log_sum_N[rows] - p_mV.mul_(x_mV).sum(dim=1) / sum_m
        ctx.save_for_backward(hidden_ND, weight_VD, bias_V, ids_N, top_N, log_sum_N, entropy_N)
        ctx.temperature, ctx.dtype, ctx.parts = temperature, dtype, parts
        # As they stand now: less the largest of their row.
        ctx.kept_NV = logits_of.place_nV if len(parts) == 1 else None
        return logprobs_N, entropy_N

    @staticmethod
    def backward(ctx: Any, grad_logprobs_N: torch.Tensor, grad_entropy_N: torch.Tensor) -> tuple:
        hidden_ND, weight_VD, bias_V, ids_N, top_N, log_sum_N, entropy_N = ctx.saved_tensors
        kept_NV, ctx.kept_NV = ctx.kept_NV, None  # the gradient takes their place
        logits_of = _Logits(hidden_ND, weight_VD, bias_V, ctx.temperature, ctx.dtype)
        on_hidden, on_weight, on_bias = ctx.needs_input_grad[:3]
        grad_hidden_ND = torch.empty_like(hidden_ND) if on_hidden else None
        grad_weight_VD = None
        grad_bias_V = _wide(torch.zeros_like(bias_V)) if on_bias else None
        for part in ctx.parts:
            grad_nV = logits_of(part) if kept_NV is None else kept_NV
            for x_mV, rows in _in_cache(grad_nV, part):
                if kept_NV is None:
                    x_mV -= top_N[rows].unsqueeze(1)
                _to_gradient(
                    x_mV.sub_(log_sum_N[rows].unsqueeze(1)),
                    ids_N[rows],
                    entropy_N[rows],
                    grad_logprobs_N[rows] / ctx.temperature,
                    grad_entropy_N[rows] / ctx.temperature,
                )
            if on_bias:
                grad_bias_V += grad_nV.sum(dim=0)
            grad_nV = grad_nV.to(ctx.dtype)
            if on_hidden:
                grad_hidden_ND[part] = grad_nV @ logits_of.weight_VD
            if on_weight:
                grad_weight_VD = _add_product(grad_weight_VD, grad_nV.T, logits_of.hidden_ND[part])
        return (
            grad_hidden_ND,
            grad_weight_VD.to(weight_VD) if on_weight else None,
            grad_bias_V.to(bias_V) if on_bias else None,
            *(None, None, None),
        )


class _Logits:
    """Scaled logits of some of the tokens at a time, always in the same place: memory that is new
    each time is slow."""

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
        self.place_nV: torch.Tensor | None = None

    def __call__(self, part: slice) -> torch.Tensor:
        hidden_nD = self.hidden_ND[part]
        if self.place_nV is None:  # no part is longer than the first
            shape = len(hidden_nD), len(self.weight_VD)
            self.place_nV = hidden_nD.new_empty(shape, dtype=self.dtype)
        x_nV = self.place_nV[: len(hidden_nD)]
        if x_nV.dtype != hidden_nD.dtype:
            x_nV.copy_(nn.functional.linear(hidden_nD, self.weight_VD, self.bias_V))
        elif self.bias_V is None:
            torch.mm(hidden_nD, self.weight_VD.T, out=x_nV)
        else:
            torch.addmm(self.bias_V, hidden_nD, self.weight_VD.T, out=x_nV)
        return x_nV if self.temperature == 1.0 else x_nV.div_(self.temperature)


def _in_cache(x_nV: torch.Tensor, part: slice) -> Iterator[tuple[torch.Tensor, slice]]:
    """A few rows of a chunk at a time, with their places among all tokens: on a processor every
    step but the first finds them in its cache."""
    size = len(x_nV)
    if x_nV.device.type == "cpu":
        size = max(1, CACHED_LOGITS // x_nV.shape[1])
    for first in range(0, len(x_nV), size):
        x_mV = x_nV[first : first + size]
        yield x_mV, slice(part.start + first, part.start + first + len(x_mV))


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _add_product(
    sum_VD: torch.Tensor | None, left_Vn: torch.Tensor, right_nD: torch.Tensor
) -> torch.Tensor:
    """sum_VD + left @ right in float32 or better. The first product is the sum: nothing is cleared
    before it."""
    if sum_VD is None:
        return _wide(left_Vn @ right_nD)
    if sum_VD.dtype == left_Vn.dtype:
        return sum_VD.addmm_(left_Vn, right_nD)
    return sum_VD.add_(left_Vn @ right_nD)


def _to_gradient(
    logp_mV: torch.Tensor,
    ids_m: torch.Tensor,
    entropy_m: torch.Tensor,
    grad_logprobs_m: torch.Tensor,
    grad_entropy_m: torch.Tensor,
) -> None:
    """The gradient of the logits takes the place of logp_mV."""
    if grad_entropy_m.any():
        p_mV = logp_mV.exp()
        logp_mV.add_(entropy_m.unsqueeze(1)).mul_(grad_entropy_m.unsqueeze(1))
        logp_mV.add_(grad_logprobs_m.unsqueeze(1)).mul_(p_mV).neg_()
    else:
        logp_mV.exp_().mul_(-grad_logprobs_m.unsqueeze(1))
    logp_mV.scatter_add_(1, ids_m.unsqueeze(1), grad_logprobs_m.unsqueeze(1))


def _parts(ids_N: torch.Tensor, vocabulary: int, kept: int) -> list[slice]:
    """Of the tokens: one where their logits are no more than `kept` or than a chunk, or where there
    are none."""
    size = max(kept // vocabulary, _chunk_size(ids_N.device, vocabulary))
    if len(ids_N) > size:
        size = _chunk_size(ids_N.device, vocabulary)
    return [slice(first, first + size) for first in range(0, max(1, len(ids_N)), size)]


def _chunk_size(device: torch.device, vocabulary: int) -> int:
    return max(1, (CHUNK_LOGITS if device.type == "cpu" else CHUNK_LOGITS_GPU) // vocabulary)
