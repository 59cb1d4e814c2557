"""Attention of variable length: torch's `varlen_attn` on packed sequences, without padded blocks.

One FlashAttention kernel computes all sequences of a packed row, whatever their lengths. It needs a
GPU and numbers of 16 bits; elsewhere packed attention calls sdpa once per block. Axes: S slots of
all sequences, one after the other; H heads; K key-value heads; E size of a head; R sequences.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import cache

import torch
from torch import nn

VARLEN_DTYPES = (torch.bfloat16, torch.float16)
CAUSAL = (-1, 0)  # window of varlen_attn: all earlier tokens and the token itself
NEEDED = ("window_size", "enable_gqa", "scale")  # arguments, which first releases did not have


@cache
def varlen_function() -> Callable[..., torch.Tensor] | None:
    """torch's `varlen_attn`; None where this release has none, or one without what is used here."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    parameters = inspect.signature(varlen_attn).parameters
    return varlen_attn if all(name in parameters for name in NEEDED) else None


def uses_varlen(model: nn.Module, device: torch.device) -> bool:
    """Whether attention of variable length is used for a model on a device, under the current
    autocast: on a GPU from compute capability 8.0 on, with numbers of 16 bits, heads of at most 256
    numbers, and a torch that has it."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
        return False
    config = getattr(model, "module", model).config
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    parameter = next(model.parameters())
    return (
        varlen_function() is not None
        and _computed_in(parameter) in VARLEN_DTYPES
        and size <= 256
        and size % 8 == 0
    )


def takes_varlen(
    bounds_R1: torch.Tensor | None, query: torch.Tensor, kwargs: Mapping[str, object]
) -> bool:
    """Whether a packing was laid out for variable length, and this call can use it."""
    return (
        bounds_R1 is not None
        and not kwargs.get("dropout")
        and varlen_function() is not None
        and _computed_in(query) in VARLEN_DTYPES
    )


def varlen(
    query_SHE: torch.Tensor,
    key_SKE: torch.Tensor,
    value_SKE: torch.Tensor,
    bounds_R1: torch.Tensor,
    longest: int,
    *,
    scale: float | None = None,
) -> torch.Tensor:
    """output_SHE of causal attention in each sequence, in the dtype of autocast.

    Args:
        bounds_R1: int32, the first slot of each sequence, and the number of slots at the end.
        longest: tokens of the longest sequence.
        scale: of the products of queries and keys; None: 1 / sqrt(E).
    """
    function = varlen_function()
    assert function is not None, "called where takes_varlen is False"
    dtype = _computed_in(query_SHE)  # `varlen_attn` is not among the functions that autocast casts
    qkv = (x.to(dtype).contiguous() for x in (query_SHE, key_SKE, value_SKE))
    return function(
        *qkv,
        bounds_R1,
        bounds_R1,
        longest,
        longest,
        scale=scale,
        window_size=CAUSAL,
        enable_gqa=query_SHE.shape[1] != key_SKE.shape[1],
    )


def _computed_in(x: torch.Tensor) -> torch.dtype:
    """dtype of matrix products of x under the current autocast."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype
