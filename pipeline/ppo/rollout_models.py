"""Policy and reference of one rollout under FSDP2, as copies that need no collectives."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from pipeline.model.unsharded import (
    copy_bytes,
    gathered,
    is_sharded,
    meta_instance,
    named_weights,
)

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
GIB = 2**30


class RolloutModels:
    """Gathers the policy once a rollout, and the reference after it; at most one copy at a time.

    The weights have the type of mixed precision, by default that of the policy. The reference is
    kept divided among the processes in that type, without the module that was sharded.

    Args:
        skeleton: a `meta_copy` of the policy with its value head and adapters.
        reference: as TRL has sharded it, or None.
        live_reference: whether the reference changes in training (`sync_ref_model`), so that its
            weights are read from its module in every rollout.
    """

    def __init__(
        self,
        skeleton: PreTrainedModel,
        reference: PreTrainedModel | None,
        accelerator: Accelerator,
        *,
        live_reference: bool = False,
    ):
        self.accelerator = accelerator
        self.dtype = DTYPES.get(accelerator.mixed_precision, skeleton.dtype)
        self.policy_skeleton = skeleton
        self.reference_skeleton = None
        self.live_reference = reference if live_reference else None
        self.reference_weights: dict[str, torch.Tensor] = {}
        if reference is not None:
            self.reference_skeleton = meta_instance(reference, type(skeleton))
            self.reference_weights = named_weights(reference)
            if not live_reference:
                self.reference_weights = _cast(self.reference_weights, self.dtype)
        self._stack = ExitStack()
        self._name = ""  # of the copy in memory
        self._copy: PreTrainedModel | None = None

    @contextmanager
    def rollout(self) -> Iterator[None]:
        """Context of one rollout; the copy is dropped at its end."""
        try:
            yield
        finally:
            self.drop()

    def policy(self, sharded: nn.Module) -> nn.Module:
        """Return the copy of the policy, or the policy itself while it is not sharded yet.

        Raises:
            ValueError: the copy does not fit into the free memory of a process.
        """
        if not is_sharded(sharded):
            return sharded
        return self._gathered("policy", named_weights(sharded), self.policy_skeleton)

    def reference(self) -> nn.Module | None:
        """Return the copy of the reference; None where there is no reference model."""
        if self.reference_skeleton is None:
            return None
        weights = self.reference_weights
        if self.live_reference is not None:
            weights = named_weights(self.live_reference)
        return self._gathered("reference", weights, self.reference_skeleton)

    def drop(self) -> None:
        """Free the memory of the copy."""
        self._name, self._copy = "", None
        self._stack.close()

    def _gathered(
        self, name: str, weights: dict[str, torch.Tensor], skeleton: PreTrainedModel
    ) -> nn.Module:
        if self._copy is None or self._name != name:
            self.drop()
            self._require_memory(name, copy_bytes(weights, self.dtype))
            self._copy = self._stack.enter_context(gathered(weights, skeleton, self.dtype))
            self._name = name
        return self._copy

    def _require_memory(self, name: str, needed: int) -> None:
        """Raise ValueError on every process where the copy does not fit on one of them."""
        if self.accelerator.device.type != "cuda":
            return
        free = torch.cuda.mem_get_info()[0]
        free += torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        least = torch.tensor([free], device=self.accelerator.device)
        free = int(self.accelerator.gather(least).min())
        if needed > free:
            raise ValueError(
                f"the unsharded copy of the {name} that a rollout needs takes {needed / GIB:.1f} "
                f"GiB, and a GPU has {free / GIB:.1f} GiB free; sample with vLLM (--use_vllm "
                "true), lower micro_batch_size, or train on more GPUs"
            )


def _cast(weights: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return the sharded weights in `dtype`, tied ones still as one tensor."""
    cast: dict[int, torch.Tensor] = {}
    for tensor in weights.values():
        if id(tensor) not in cast:
            cast[id(tensor)] = tensor.to(dtype) if isinstance(tensor, DTensor) else tensor
    return {name: cast[id(tensor)] for name, tensor in weights.items()}
