"""An unsharded copy of a model whose weights are divided among processes (FSDP2).

Under FSDP2 every layer of a forward is a collective operation. Processes that sample completions of
different lengths would call different numbers of them, and one process would wait forever. Sampling
therefore uses a copy: all processes gather each weight once, sample without collectives, and drop
the copy. A copy is an ordinary model, so packed rows, shared prefills and CUDA graphs work with it.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

ModelT = TypeVar("ModelT", bound=nn.Module)
# Wrappers that activation checkpointing and torch.compile insert into the names of parameters.
WRAPPERS = ("_checkpoint_wrapped_module.", "_orig_mod.")
FLOAT32_MODULES = ("value_head.",)  # differences of values are below the resolution of bfloat16


def is_sharded(model: nn.Module) -> bool:
    """Return whether a parameter is divided among processes as a DTensor (FSDP2)."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def meta_copy(model: ModelT) -> ModelT:
    """Return a copy whose parameters are on the meta device and use no memory.

    It must be made before the model is sharded: a sharded module cannot be copied. A `forward` that
    a trainer has replaced in the model is that of its class again, because the replacement may call
    the original model. Activation checkpointing is off in the copy.
    """
    memo: dict[int, object] = {}
    for parameter in model.parameters():
        empty = torch.empty_like(parameter, device="meta")
        memo[id(parameter)] = nn.Parameter(empty, requires_grad=False)
    copied = copy.deepcopy(model, memo)
    for module in copied.modules():
        module.__dict__.pop("forward", None)
        if getattr(module, "gradient_checkpointing", False):
            module.gradient_checkpointing = False
    return copied.eval()


def meta_instance(like: PreTrainedModel, model_class: type[PreTrainedModel]) -> PreTrainedModel:
    """Return a model of this class on the meta device, with the configuration of `like`."""
    with torch.device("meta"):
        model = model_class(copy.deepcopy(like.config))
    return model.requires_grad_(False).eval()


def named_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return parameters and buffers by name, without the names of wrappers.

    Tied parameters are one tensor under several names. Buffers that are not saved in checkpoints,
    such as rotary frequencies, are included.
    """
    weights: dict[str, torch.Tensor] = {}
    detached: dict[int, torch.Tensor] = {}
    for name, tensor in [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]:
        for wrapper in WRAPPERS:
            name = name.replace(wrapper, "")
        weights[name] = detached.setdefault(id(tensor), tensor.detach())
    return weights


def copy_bytes(weights: Mapping[str, torch.Tensor], dtype: torch.dtype) -> int:
    """Return the bytes of the tensors that `gathered` makes; what is not sharded is not copied."""
    distinct = {id(x): (name, x) for name, x in weights.items() if isinstance(x, DTensor)}
    return sum(x.numel() * _dtype(n, x, dtype).itemsize for n, x in distinct.values())


@contextmanager
def gathered(
    weights: Mapping[str, torch.Tensor],
    skeleton: ModelT,
    dtype: torch.dtype | None = None,
    place: Callable[[torch.Tensor], torch.Tensor] = lambda full: full,
) -> Iterator[ModelT]:
    """Context with `skeleton` holding the full weights; they are dropped at the end.

    All processes must enter it together. Every sharded tensor is cast to `dtype`, the value head to
    float32, and gathered once, tied ones once in all. What is not sharded is used as it is.

    Args:
        weights: of the sharded model, by name (`named_weights`).
        skeleton: a `meta_copy` or `meta_instance` with the same names.
        dtype: of the full weights; None keeps that of each.
        place: what becomes of a gathered tensor, such as its copy on the CPU.

    Raises:
        ValueError: the skeleton has a parameter that is not among the weights.
    """
    slots = list(_slots(skeleton))
    missing = [slot.name for slot in slots if slot.is_parameter and slot.name not in weights]
    if missing:
        raise ValueError(
            f"the sharded model has no weight {missing[0]}, which its unsharded copy needs; sample "
            "with vLLM (--use_vllm true) or train with another distributed_type"
        )
    full: dict[int, torch.Tensor] = {}
    try:
        for slot in slots:
            tensor = weights.get(slot.name)
            if tensor is None:
                continue
            if id(tensor) not in full:
                whole = place(_gather(slot.name, tensor, dtype))
                full[id(tensor)] = (
                    nn.Parameter(whole, requires_grad=False) if slot.is_parameter else whole
                )
            slot.set(full[id(tensor)])  # tied modules hold one parameter
        yield skeleton
    finally:
        full.clear()
        for slot in slots:
            slot.set(slot.before)


@dataclass(frozen=True)
class _Slot:
    """The place of a parameter or buffer in a module, and what it held before."""

    name: str
    module: nn.Module
    leaf: str
    is_parameter: bool
    before: torch.Tensor

    def set(self, tensor: torch.Tensor) -> None:
        kind = self.module._parameters if self.is_parameter else self.module._buffers
        kind[self.leaf] = tensor


def _slots(model: nn.Module) -> Iterator[_Slot]:
    for path, module in model.named_modules():
        for is_parameter, tensors in ((True, module._parameters), (False, module._buffers)):
            for leaf, tensor in tensors.items():
                if tensor is not None:
                    name = f"{path}.{leaf}" if path else leaf
                    yield _Slot(name, module, leaf, is_parameter, tensor)


def _gather(name: str, tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    if not isinstance(tensor, DTensor):
        return tensor
    return tensor.to(_dtype(name, tensor, dtype)).full_tensor()


def _dtype(name: str, tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.dtype:
    if dtype is None or not tensor.is_floating_point():
        return tensor.dtype
    return torch.float32 if any(part in name for part in FLOAT32_MODULES) else dtype
