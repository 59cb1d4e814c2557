"""Sequences of mixed lengths through a model without a single padded token.

All tokens stand in one row, and every layer but attention takes each of them alone. Attention cuts
the row back into its sequences, those of like length side by side. The packed row gives what a
padded batch gives, and a minibatch needs no sorting for speed.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "packed_sdpa"
# Sequences share a call of attention while the shortest has this share of the longest's tokens:
# fewer calls against less padding, which costs nothing outside attention.
LIKE_LENGTH = 0.6


@dataclass(frozen=True)
class Packing:
    """Where the tokens of the sequences stand in the row of N, and in the blocks of attention.

    Sequences of 2, 3 and 1 tokens, cut into a block of 2 x 3 and one of 1 x 1 (8 slots, S = 7):

        row     [0 0 1 1 1 2]        positions_N  [0 1 0 1 2 0]
        slots   [1 1 1 0 0 . 2]      blocks       [(2, 3), (1, 1)]
    """

    positions_N: torch.Tensor
    token_of_S: torch.Tensor  # the token in each slot; padding repeats a sequence's last token
    slot_of_N: torch.Tensor
    blocks: tuple[tuple[int, int], ...]  # (sequences, width) of each call of attention


def pack(lengths: Sequence[int], device: torch.device | None = None) -> Packing:
    """The packing of sequences that stand one after the other in the row.

    >>> pack([2, 3, 1]).blocks
    ((2, 3), (1, 1))
    """
    starts = [0]
    for length in lengths:
        starts.append(starts[-1] + length)
    tokens, blocks, slots = [], [], torch.empty(starts[-1], dtype=torch.long)
    done = 0
    for group in _of_like_length(lengths):
        width = lengths[group[0]]
        lengths_R = torch.tensor([lengths[i] for i in group]).unsqueeze(1)
        starts_R = torch.tensor([starts[i] for i in group]).unsqueeze(1)
        columns_L = torch.arange(width)
        token_RL = starts_R + torch.minimum(columns_L, lengths_R - 1)
        real_RL = columns_L < lengths_R
        slots[token_RL[real_RL]] = done + real_RL.flatten().nonzero().squeeze(1)
        tokens.append(token_RL.flatten())
        blocks.append((len(group), width))
        done += token_RL.numel()
    positions = [torch.arange(length) for length in lengths]
    return Packing(
        positions_N=torch.cat(positions).to(device),
        token_of_S=torch.cat(tokens).to(device),
        slot_of_N=slots.to(device),
        blocks=tuple(blocks),
    )


def _of_like_length(lengths: Sequence[int]) -> Iterator[list[int]]:
    """The indices of the sequences, longest first, cut where lengths fall too far."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    group: list[int] = []
    for i in order:
        if group and lengths[i] < LIKE_LENGTH * lengths[group[0]]:
            yield group
            group = []
        group.append(i)
    yield group


_current: ContextVar[Packing | None] = ContextVar("packing", default=None)


@contextmanager
def packed_attention(model: nn.Module, packing: Packing) -> Iterator[None]:
    """Attention of `model` follows `packing`, and no attention mask is made."""
    config = model.config
    before, token = config._attn_implementation, _current.set(packing)
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before
        _current.reset(token)


def can_pack(model: nn.Module) -> bool:
    """False where a packed row could mean something else than its sequences.

    Recomputed layers would run outside `packed_attention`, a window is laid by the mask that is not
    made here, and a sharded model is not to be called in parts.
    """
    config = model.config
    return (
        config._attn_implementation == "sdpa"
        and getattr(model, "_supports_attention_backend", False)
        and not any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
        and set(getattr(config, "layer_types", None) or ["full_attention"]) == {"full_attention"}
        and not (getattr(config, "sliding_window", None) and not hasattr(config, "layer_types"))
        and not any(_is_sharded(parameter) for parameter in model.parameters())
    )


def _is_sharded(parameter: nn.Parameter) -> bool:
    return hasattr(parameter, "ds_id") or hasattr(parameter, "device_mesh")


class Take(torch.autograd.Function):
    """x_NE[where_K] for places that differ: the gradient is put back without being added up."""

    @staticmethod
    def forward(ctx: Any, x_NE: torch.Tensor, where_K: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(where_K)
        ctx.length = len(x_NE)
        return x_NE.index_select(0, where_K)

    @staticmethod
    def backward(ctx: Any, grad_KE: torch.Tensor) -> tuple[torch.Tensor, None]:
        (where_K,) = ctx.saved_tensors
        grad_NE = grad_KE.new_zeros(ctx.length, *grad_KE.shape[1:])
        return grad_NE.index_copy_(0, where_K, grad_KE), None


class _Spread(torch.autograd.Function):
    """x_NE in its slots. What stands on padding reaches no real token, so no gradient comes back
    from there."""

    @staticmethod
    def forward(
        ctx: Any, x_NE: torch.Tensor, token_of_S: torch.Tensor, slot_of_N: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(slot_of_N)
        return x_NE.index_select(0, token_of_S)

    @staticmethod
    def backward(ctx: Any, grad_SE: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return grad_SE.index_select(0, ctx.saved_tensors[0]), None, None


def _packed_sdpa(
    module: nn.Module,
    query_1HNE: torch.Tensor,
    key_1HNE: torch.Tensor,
    value_1HNE: torch.Tensor,
    attention_mask: None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' "sdpa", one call a block of sequences."""
    packing, sdpa = _current.get(), ALL_ATTENTION_FUNCTIONS["sdpa"]

    def spread(x_1HNE: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x_SHE = _Spread.apply(x_1HNE[0].transpose(0, 1), packing.token_of_S, packing.slot_of_N)
        return x_SHE.split([rows * width for rows, width in packing.blocks])

    outputs = []
    parts = zip(*map(spread, (query_1HNE, key_1HNE, value_1HNE)), packing.blocks, strict=True)
    for *three, (rows, width) in parts:
        three_RHLE = [x.view(rows, width, *x.shape[1:]).transpose(1, 2) for x in three]
        output_RLHE, _ = sdpa(module, *three_RHLE, None, **kwargs)
        outputs.append(output_RLHE.flatten(0, 1))
    return Take.apply(torch.cat(outputs), packing.slot_of_N).unsqueeze(0), None


AttentionInterface.register(NAME, _packed_sdpa)
