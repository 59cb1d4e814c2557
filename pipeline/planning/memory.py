r"""Memory of one GPU in training, by part, in bytes.

Model state in bytes per trained parameter, with N GPUs (ZeRO: arXiv:1910.02054, section 3):

    one GPU   float32 weight 4, gradient 4, two moments of AdamW 8
    DDP       4 more, for the buckets of gradients
    FSDP2     those of one GPU, all divided by N
    ZeRO-2    bfloat16 weight 2; divided by N: gradient 2, float32 weight and moments 12
    ZeRO-3    those of ZeRO-2, all divided by N

A frozen parameter takes 4 or 2 bytes, in NF4 0.5 + 4/64 (arXiv:2305.14314). Under autocast the
matrices in float32 are cast to bfloat16 once: 2 bytes more. The reference of a full PPO run with KL
has the whole model again. Sampling under FSDP2 and ZeRO-3 gathers a whole copy of 2 bytes a
parameter.

Activations of a decoder layer with packed attention, per token (h hidden size, k width of the keys,
i of the MLP), counted from what autograd saves:

    float32   36 h + 8 k + 16 i      bfloat16 autocast   32 h + 4 k + 8 i
    Qwen3's norms of queries and keys: + 8 (h + k), under autocast + 6 (h + k)

With gradient checkpointing a layer keeps its input, 4 h, and one layer at a time is computed again
(arXiv:1604.06174). Sharded models score padded sequences and keep all logits: 17 bytes each,
measured at a vocabulary of 152k.
"""

from dataclasses import dataclass
from typing import Literal

from pipeline.planning.shapes import ModelShape

Strategy = Literal["one GPU", "DDP", "ZeRO-2", "ZeRO-3", "FSDP2"]
Method = Literal["full", "LoRA", "QLoRA"]
SHARDED: tuple[Strategy, ...] = ("ZeRO-3", "FSDP2")
NF4_BYTES = 0.5 + 4 / 64
LOGIT_BYTES = 17.0
LM_HEAD_CHUNK = 2 * 4 * 2**27  # logits of a chunk and their gradient, float32, on a GPU
RUNTIME = 1.5 * 2**30  # CUDA context, libraries and fragments of the allocator


@dataclass(frozen=True)
class Plan:
    """What a training run needs, independent of the number of GPUs."""

    shape: ModelShape
    method: Method = "full"
    lora_rank: int = 16
    frozen_bytes: float = 4.0  # of a frozen parameter with LoRA
    has_reference: bool = False  # PPO with KL
    samples: bool = True  # PPO; SFT and pretraining do not sample
    mixed_precision: bool = True
    checkpointing: bool = False

    @property
    def trained(self) -> int:
        """Trained parameters."""
        if self.method == "full":
            return self.shape.parameters
        return self.shape.adapter_parameters(self.lora_rank)


@dataclass(frozen=True)
class Memory:
    """Bytes of one GPU, without activations and KV cache."""

    weights: float
    gradients: float
    optimizer: float
    reference: float
    copies: float  # bfloat16 weights of autocast, or gathered weights
    fixed: float = RUNTIME + LM_HEAD_CHUNK

    @property
    def total(self) -> float:
        """The sum of the parts."""
        return (
            self.weights + self.gradients + self.optimizer + self.reference + self.copies
        ) + self.fixed


def model_state(plan: Plan, strategy: Strategy, gpus: int) -> Memory:
    """Return the memory of weights, gradients, optimizer, reference and copies on each GPU.

    Raises:
        ValueError: the strategy does not apply to the method or the number of GPUs.
    """
    if strategy == "one GPU" and gpus != 1:
        raise ValueError(f"one GPU is not {gpus}; take DDP, ZeRO-2, ZeRO-3 or FSDP2")
    if plan.method == "QLoRA" and strategy not in ("one GPU", "DDP"):
        raise ValueError(f"weights of 4 bits are not divided by {strategy}; take DDP")
    p, trained = plan.shape.parameters, plan.trained
    share = 1 / gpus if strategy in SHARDED else 1.0
    low = strategy.startswith("ZeRO")  # DeepSpeed keeps bfloat16 weights and gradients
    reference = float(p) * (2 if low or strategy == "FSDP2" else 4) * share
    weight = 2.0 if low else 4.0
    frozen = 0.0
    if plan.method != "full":
        frozen = _frozen_bytes(plan) * share
    states = 12.0 if low else 8.0
    gradient = 2.0 if low else 4.0
    copies = 0.0
    if strategy in SHARDED:
        copies = 2.0 * p if plan.samples else 4.0 * p / plan.shape.layers
    elif not low and plan.mixed_precision and (plan.method == "full" or _frozen_in_float32(plan)):
        copies = 2.0 * plan.shape.matrix_parameters
    return Memory(
        weights=weight * trained * share + frozen,
        gradients=gradient * trained * (1 / gpus if strategy == "ZeRO-2" else share)
        + (4.0 * trained if strategy == "DDP" else 0.0),
        optimizer=states * trained * (1 / gpus if strategy == "ZeRO-2" else share),
        reference=reference if plan.has_reference and plan.method == "full" else 0.0,
        copies=copies,
    )


def _frozen_in_float32(plan: Plan) -> bool:
    """Whether autocast has to cast the frozen weights of adapters."""
    return plan.method == "LoRA" and plan.frozen_bytes > 2


def _frozen_bytes(plan: Plan) -> float:
    """Bytes of the frozen base model of adapters; embedding and LM head are never in 4 bits."""
    shape = plan.shape
    if plan.method == "QLoRA":
        return (
            NF4_BYTES * (shape.parameters - shape.embedding) + plan.frozen_bytes * shape.embedding
        )
    return plan.frozen_bytes * shape.parameters


def activation_bytes(plan: Plan) -> float:
    """Bytes that a forward keeps for the backward pass, per token of a micro-batch."""
    shape = plan.shape
    h, k, i = shape.hidden, shape.kv_width, shape.intermediate
    if plan.mixed_precision:
        layer = 32 * h + 4 * k + 8 * i + (6 * (h + k) if shape.qk_norm else 0)
    else:
        layer = 36 * h + 8 * k + 16 * i + (8 * (h + k) if shape.qk_norm else 0)
    last_norm = 8 * h
    if plan.checkpointing:
        return shape.layers * 4 * h + layer + last_norm
    return shape.layers * layer + last_norm


def logit_bytes(plan: Plan, strategy: Strategy) -> float:
    """Bytes of logits per token; packed rows have them in chunks of a fixed size."""
    return LOGIT_BYTES * plan.shape.vocab if strategy in SHARDED else 0.0


def longest_sequence(plan: Plan, strategy: Strategy, gpus: int, gpu_bytes: float, rows: int) -> int:
    """Return the most tokens of a sequence: in updates of one sequence, and with the KV cache of
    `rows` sequences that are sampled together; at most the model's window, 0 if nothing fits."""
    free = gpu_bytes - model_state(plan, strategy, gpus).total
    found = free / (activation_bytes(plan) + logit_bytes(plan, strategy))
    if plan.samples:
        found = min(found, free / (plan.shape.kv_bytes() * rows))
    return max(0, int(found if plan.shape.window is None else min(found, plan.shape.window)))


def sampled_together(
    plan: Plan, strategy: Strategy, gpus: int, gpu_bytes: float, tokens: int, most: int
) -> int:
    """Return how many sequences of so many tokens have room for their KV cache, 1 to `most`."""
    free = gpu_bytes - model_state(plan, strategy, gpus).total
    return max(1, min(most, int(free / (plan.shape.kv_bytes() * max(1, tokens)))))
