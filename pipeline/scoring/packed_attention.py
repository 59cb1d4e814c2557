"""Sequence packing: run sequences of different lengths through a model without padding tokens.

All tokens are concatenated into one row, since every layer but attention processes tokens one by
one. Attention gathers the row into padded blocks of sequences of similar length. A prefix that
sequences share, as completions share their prompt, is in the row once.

Axes beside those of `pipeline.records`: N tokens of the packed row, S slots of all padded blocks.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial

import torch
from torch import nn
from torch.autograd.function import FunctionCtx
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from pipeline.scoring.compiled_layers import ATTENTION_NAME, compiled_layers
from pipeline.scoring.packing import Packing
from pipeline.scoring.varlen_attention import takes_varlen, varlen

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
    config = model.config.get_text_config()
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
    scaling: float | None = None,
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
        query_SHE, key_SHE, value_SHE = slots_SHE
        output_SHE = varlen(
            query_SHE, key_SHE, value_SHE, packing.bounds_R1, max(widths), scale=scaling
        )
    else:
        output_SHE = _by_block(module, slots_SHE, packing.blocks, kwargs | {"scaling": scaling})
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
