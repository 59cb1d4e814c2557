"""Decoder layers compiled by torch for packed forwards: scoring and the update, not sampling.

Each layer is compiled by itself (regional compilation): the layers of a model have the same code,
so that one compilation serves all. Attention stays as it is; the norms, rotary embedding, gated MLP
and residual sums around it become a few kernels. Shapes are dynamic: a packed row has another
length in every micro-batch.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

ATTENTION_NAME = "packed_sdpa"  # of the function that packed attention registers

# By model: its layers with what is called in place of each.
_compiled: WeakKeyDictionary[nn.Module, list[tuple[nn.Module, Callable]]] = WeakKeyDictionary()


def compile_decoder_layers(model: nn.Module, backend: str | Callable = "inductor") -> int:
    """Compile the decoder layers of a model for packed forwards; return their number.

    Nothing is compiled before the first forward. A copy of the model is not compiled.

    Args:
        model: without wrappers such as DistributedDataParallel.
        backend: of torch.compile; inductor needs a C++ compiler, on a GPU Triton.

    Raises:
        ValueError: no layer of the model is a decoder layer of transformers.
    """
    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    if not layers:
        raise ValueError(
            f"compile_layers=true: {type(model).__name__} has no decoder layers of transformers to "
            "compile; leave it out"
        )
    # A graph break in each layer: attention by block depends on the packing of the micro-batch.
    attention = ALL_ATTENTION_FUNCTIONS[ATTENTION_NAME]
    AttentionInterface.register(ATTENTION_NAME, torch.compiler.disable(attention))
    _compiled[model] = [
        (layer, torch.compile(layer._call_impl, dynamic=True, backend=backend)) for layer in layers
    ]
    return len(layers)


def is_compiled(model: nn.Module) -> bool:
    """Whether `compile_decoder_layers` was called with this model."""
    return model in _compiled


@contextmanager
def compiled_layers(model: nn.Module) -> Iterator[None]:
    """Context in which the layers of a model are called compiled, where they are."""
    calls = _compiled.get(model, [])
    before = [layer._compiled_call_impl for layer, _ in calls]
    for layer, call in calls:
        layer._compiled_call_impl = call
    try:
        yield
    finally:
        for (layer, _), call in zip(calls, before, strict=True):
            layer._compiled_call_impl = call
