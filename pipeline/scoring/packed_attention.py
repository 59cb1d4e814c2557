"""Sequence packing: run sequences of different lengths through a model without padding tokens.

All tokens are concatenated into one row, since every layer but attention processes tokens one by
one. Attention gathers the row into padded blocks of sequences of similar length. A prefix that
sequences share, as completions share their prompt, is in the row once.

Axes beside those of `pipeline.records`: N tokens of the packed row, S slots of all padded blocks.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn
from torch.autograd.function import FunctionCtx
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from pipeline.scoring.compiled_layers import ATTENTION_NAME, compiled_layers
from pipeline.scoring.varlen_attention import takes_varlen, varlen

# Length of the shortest sequence of a block, relative to the longest: a lower ratio gives fewer
# attention calls with more padding. On a GPU, launching the calls is what takes time.
MIN_LENGTH_RATIO, MIN_LENGTH_RATIO_GPU = 0.6, 0.25


@dataclass(frozen=True)
class Packing:
    """Index maps between sequences, the packed row and the padded blocks of attention.

    Sequences of 2, 3 and 1 tokens, in a block of 2 x 3 and one of 1 x 1 (S = 7 slots):

        row     [0 0 1 1 1 2]        position_ids_N  [0 1 0 1 2 0]
        slots   [1 1 1 0 0 . 2]      blocks       [(2, 3), (1, 1)]

    A token of a shared prefix has one slot for each sequence: the first is `slot_index_N`, the
    others are the duplicates.
    """

    position_ids_N: torch.Tensor
    token_index_BT: torch.Tensor  # index into the row of each sequence's tokens
    shared_B: torch.Tensor  # tokens of the sequence that an earlier one has in the row already
    token_index_S: torch.Tensor  # index into the row of each slot; padding repeats the last token
    slot_index_N: torch.Tensor  # first slot of each token
    duplicate_slot_X: torch.Tensor  # further slots of shared tokens
    duplicate_token_X: torch.Tensor  # the tokens in those slots
    unused_slot_Y: torch.Tensor  # duplicates and padding: attention's output there is dropped
    blocks: tuple[tuple[int, int], ...]  # (sequences, width) of each attention call
    bounds_R1: torch.Tensor | None = None  # int32, varlen: first slot of each sequence, and the end

    def to(self, device: torch.device) -> "Packing":
        """The same for attention on a device; what only packing itself reads stays on the CPU."""
        read_by_attention = (
            *("position_ids_N", "token_index_S", "slot_index_N", "duplicate_slot_X"),
            *("duplicate_token_X", "unused_slot_Y", "bounds_R1"),
        )
        named = {name: getattr(self, name) for name in read_by_attention}
        moved = {name: to_device(x, device) for name, x in named.items() if x is not None}
        return replace(self, **moved)


def to_device(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A CPU tensor on a device; to a GPU from pinned memory, so that nothing waits for the GPU."""
    if device.type != "cuda":
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)


def pack(
    lengths: Sequence[int],
    prefixes: Sequence[tuple[int, ...]] | None = None,
    device: torch.device | None = None,
    *,
    varlen: bool = False,
) -> Packing:
    """The packing of sequences that are concatenated in the given order, on the CPU.

    Args:
        lengths: tokens of each sequence.
        prefixes: first tokens of each sequence; equal prefixes are in the row once.
        device: that it will be used on: a GPU has fewer blocks, with more padding.
        varlen: every sequence is a block, in the given order and without padding, for attention of
            variable length.

    >>> pack([2, 3, 1]).blocks
    ((2, 3), (1, 1))
    >>> pack([2, 3], prefixes=[(7,), (7,)]).token_index_BT.tolist()
    [[0, 1, 1], [0, 2, 3]]
    """
    token_index_BT, shared = _token_indices(lengths, prefixes or [()] * len(lengths))
    shared_B = torch.tensor(shared)
    positions = [torch.arange(start, length) for start, length in zip(shared, lengths, strict=True)]
    tokens, blocks, slots = [], [], []
    on_gpu = device is not None and device.type == "cuda"
    groups: Iterable[list[int]] = ([i] for i in range(len(lengths)))
    if not varlen:
        groups = _length_groups(lengths, MIN_LENGTH_RATIO_GPU if on_gpu else MIN_LENGTH_RATIO)
    for group in groups:
        width = lengths[group[0]]
        token_index_RL = token_index_BT[group, :width]
        columns_L = torch.arange(width)
        real_RL = columns_L < torch.tensor([lengths[i] for i in group]).unsqueeze(1)
        duplicate_RL = real_RL & (columns_L < shared_B[group].unsqueeze(1))
        tokens.append(token_index_RL.flatten())
        slots.append(torch.stack([real_RL & ~duplicate_RL, duplicate_RL]).flatten(1))
        blocks.append((len(group), width))
    token_index_S = torch.cat(tokens)
    first_S, duplicate_S = torch.cat(slots, dim=1)
    slot_index_N = torch.empty(sum(lengths) - sum(shared), dtype=torch.long)
    slot_index_N[token_index_S[first_S]] = first_S.nonzero().squeeze(1)
    bounds_R1 = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    return Packing(
        position_ids_N=torch.cat(positions),
        token_index_BT=token_index_BT,
        shared_B=shared_B,
        token_index_S=token_index_S,
        slot_index_N=slot_index_N,
        duplicate_slot_X=duplicate_S.nonzero().squeeze(1),
        duplicate_token_X=token_index_S[duplicate_S],
        unused_slot_Y=(~first_S).nonzero().squeeze(1),
        blocks=tuple(blocks),
        bounds_R1=bounds_R1 if varlen else None,
    )


def _token_indices(
    lengths: Sequence[int], prefixes: Sequence[tuple[int, ...]]
) -> tuple[torch.Tensor, list[int]]:
    """(token_index_BT, shared): see `Packing`; beyond its end a sequence repeats its last token."""
    prefix_start: dict[tuple[int, ...], int] = {}
    starts, shared, packed_length = [], [], 0
    for length, prefix in zip(lengths, prefixes, strict=True):
        shared.append(len(prefix) if prefix in prefix_start else 0)
        starts.append((prefix_start.setdefault(prefix, packed_length), packed_length - shared[-1]))
        packed_length += length - shared[-1]
    prefix_offset_B, suffix_offset_B = torch.tensor(starts).unsqueeze(-1).unbind(1)
    column_BT = torch.minimum(torch.arange(max(lengths)), torch.tensor(lengths).unsqueeze(1) - 1)
    in_prefix_BT = column_BT < torch.tensor([len(prefix) for prefix in prefixes]).unsqueeze(1)
    return torch.where(in_prefix_BT, prefix_offset_B, suffix_offset_B) + column_BT, shared


def _length_groups(lengths: Sequence[int], min_ratio: float) -> Iterator[list[int]]:
    """Indices of sequences, longest first, in groups of lengths of at least min_ratio * longest."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    group: list[int] = []
    for i in order:
        if group and lengths[i] < min_ratio * lengths[group[0]]:
            yield group
            group = []
        group.append(i)
    yield group


_current: ContextVar[Packing | None] = ContextVar("packing", default=None)


@contextmanager
def packed_attention(model: nn.Module, packing: Packing) -> Iterator[None]:
    """Context in which the attention of `model` uses `packing`, without an attention mask.

    With gradient checkpointing, layers that are computed again in the backward pass, outside of
    this context, use the packing too. Compiled layers are called in it.
    """
    config = model.config
    before, token = config._attn_implementation, _current.set(packing)
    config._attn_implementation = ATTENTION_NAME
    checkpointed = [m for m in model.modules() if getattr(m, "gradient_checkpointing", False)]
    functions = [m.__dict__.get("_gradient_checkpointing_func") for m in checkpointed]
    again = partial(
        checkpoint,
        use_reentrant=False,
        context_fn=lambda: (nullcontext(), packed_attention(model, packing)),
    )
    for module in checkpointed:
        module.__dict__["_gradient_checkpointing_func"] = again
    try:
        with compiled_layers(model):
            yield
    finally:
        config._attn_implementation = before
        for module, function in zip(checkpointed, functions, strict=True):
            module.__dict__["_gradient_checkpointing_func"] = function
        _current.reset(token)


def can_pack(model: nn.Module) -> bool:
    """Whether the attention of the model can be replaced by `packed_attention`.

    Not with a reasoning layer: which head predicts a token depends on the tags before it.
    """
    return (
        has_full_causal_attention(model)
        and getattr(model, "_supports_attention_backend", False)
        and getattr(model, "reasoning_layer", None) is None
    )


def has_full_causal_attention(model: nn.Module) -> bool:
    """Whether every token attends to all earlier ones, with torch's scaled_dot_product_attention.

    False for sliding-window attention, which needs the mask that transformers makes, and for
    sharded models (DeepSpeed ZeRO-3, FSDP), whose modules cannot be called separately.
    """
    config = model.config
    return (
        config._attn_implementation == "sdpa"
        and set(getattr(config, "layer_types", None) or ["full_attention"]) == {"full_attention"}
        and not (getattr(config, "sliding_window", None) and not hasattr(config, "layer_types"))
        and not any(_is_sharded(parameter) for parameter in model.parameters())
    )


def _is_sharded(parameter: nn.Parameter) -> bool:
    return hasattr(parameter, "ds_id") or hasattr(parameter, "device_mesh")


class GatherRows(torch.autograd.Function):
    """x_NE[index_K] for distinct indices: the backward pass copies instead of accumulating."""

    @staticmethod
    def forward(ctx: FunctionCtx, x_NE: torch.Tensor, index_K: torch.Tensor) -> torch.Tensor:
        """x_KE, the rows of x_NE at the indices."""
        ctx.save_for_backward(index_K)
        ctx.length = len(x_NE)
        return x_NE.index_select(0, index_K)

    @staticmethod
    def backward(ctx: FunctionCtx, grad_KE: torch.Tensor) -> tuple[torch.Tensor, None]:
        """grad_NE: the gradients at the indices, 0 elsewhere."""
        (index_K,) = ctx.saved_tensors
        grad_NE = grad_KE.new_zeros(ctx.length, *grad_KE.shape[1:])
        return grad_NE.index_copy_(0, index_K, grad_KE), None


class _PackedToPadded(torch.autograd.Function):
    """Gather x_NE into slots, x_SE. Padding slots have no gradient: causality keeps them unused."""

    @staticmethod
    def forward(ctx: FunctionCtx, x_NE: torch.Tensor, packing: Packing) -> torch.Tensor:
        ctx.packing = packing
        return x_NE.index_select(0, packing.token_index_S)

    @staticmethod
    def backward(ctx: FunctionCtx, grad_SE: torch.Tensor) -> tuple[torch.Tensor, None]:
        packing = ctx.packing
        grad_NE = grad_SE.index_select(0, packing.slot_index_N)
        if len(packing.duplicate_slot_X):
            duplicate_XE = grad_SE.index_select(0, packing.duplicate_slot_X)
            grad_NE.index_add_(0, packing.duplicate_token_X, duplicate_XE)
        return grad_NE, None


class _PaddedToPacked(torch.autograd.Function):
    """Gather x_SE into the row, x_NE, each token from its first slot.

    The backward pass gathers too, which is faster than the scatter of `GatherRows`.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, x_SE: torch.Tensor, packing: Packing) -> torch.Tensor:
        ctx.packing = packing
        return x_SE.index_select(0, packing.slot_index_N)

    @staticmethod
    def backward(ctx: FunctionCtx, grad_NE: torch.Tensor) -> tuple[torch.Tensor, None]:
        packing = ctx.packing
        grad_SE = grad_NE.index_select(0, packing.token_index_S)
        return grad_SE.index_fill_(0, packing.unused_slot_Y, 0.0), None


def _packed_sdpa(
    module: nn.Module,
    query_1HNE: torch.Tensor,
    key_1HNE: torch.Tensor,
    value_1HNE: torch.Tensor,
    attention_mask: None,
    **kwargs: object,
) -> tuple[torch.Tensor, None]:
    """Attention function for transformers: its "sdpa", one call per block of the packing, or one
    call of variable length for all."""
    packing = _current.get()
    assert packing is not None, "called outside of packed_attention"
    # Without shared prefixes, the slots of variable length are the tokens of the row in order.
    in_order = packing.bounds_R1 is not None and not len(packing.duplicate_slot_X)
    slots_SHE = []
    for x_1HNE in (query_1HNE, key_1HNE, value_1HNE):
        x_NHE = x_1HNE[0].transpose(0, 1)
        slots_SHE.append(x_NHE if in_order else _PackedToPadded.apply(x_NHE, packing))
    if takes_varlen(packing.bounds_R1, query_1HNE, kwargs):
        widths = [width for _, width in packing.blocks]
        output_SHE = varlen(*slots_SHE, packing.bounds_R1, max(widths), kwargs.get("scaling"))
    else:
        output_SHE = _by_block(module, slots_SHE, packing.blocks, kwargs)
    if not in_order:
        output_SHE = _PaddedToPacked.apply(output_SHE, packing)
    return output_SHE.unsqueeze(0), None


def _by_block(
    module: nn.Module,
    slots_SHE: list[torch.Tensor],
    blocks: tuple[tuple[int, int], ...],
    kwargs: dict[str, object],
) -> torch.Tensor:
    sdpa, outputs = ALL_ATTENTION_FUNCTIONS["sdpa"], []
    sizes = [rows * width for rows, width in blocks]
    for *qkv, (rows, width) in zip(*(x.split(sizes) for x in slots_SHE), blocks, strict=True):
        qkv_RHLE = [x.view(rows, width, *x.shape[1:]).transpose(1, 2) for x in qkv]
        output_RLHE, _ = sdpa(module, *qkv_RHLE, None, **kwargs)
        outputs.append(output_RLHE.flatten(0, 1))
    return torch.cat(outputs)


AttentionInterface.register(ATTENTION_NAME, _packed_sdpa)
