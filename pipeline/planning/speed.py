"""Time of a training run from its operations and the bytes that sampling reads.

training        6 N operations per token, N parameters in matrix products (arXiv:2001.08361);
                with frozen weights 4 N, recomputed activations 2 N more
attention       12 x layers x hidden x T / 2 per token of training, T tokens of the sequence
scoring         2 N per token
one decode step max(weights + KV cache read / bandwidth, 2 N x rows / speed)
"""

from dataclasses import dataclass

from pipeline.planning.memory import Plan


@dataclass(frozen=True)
class Hardware:
    """Speed of one GPU, and which shares of it are used."""

    flops: float = 989e12  # bfloat16 without sparsity: H100 SXM data sheet
    bandwidth: float = 3.35e12  # bytes a second: H100 SXM data sheet
    used_flops: float = 0.3
    used_bandwidth: float = 0.5

    @property
    def speed(self) -> float:
        """Operations a second that are reached."""
        return self.flops * self.used_flops

    @property
    def reading(self) -> float:
        """Bytes a second that are reached."""
        return self.bandwidth * self.used_bandwidth


@dataclass(frozen=True)
class Rollout:
    """The sizes of one PPO rollout; all completions are assumed to have `tokens` tokens."""

    sequences: int
    tokens: int
    epochs: int
    sampled_together: int
    prompt_tokens: int = 100


def training_operations(plan: Plan, length: int) -> float:
    """Operations of forward and backward per token of sequences of that length."""
    n = plan.shape.matrix_parameters
    factor = (6 if plan.method == "full" else 4) + (2 if plan.checkpointing else 0)
    return factor * n + 6.0 * plan.shape.layers * plan.shape.hidden * length


def training_seconds(plan: Plan, tokens: float, length: int, gpus: int, gpu: Hardware) -> float:
    """Seconds of training on so many tokens, divided among the GPUs."""
    return tokens * training_operations(plan, length) / (gpu.speed * gpus)


def sampling_seconds(plan: Plan, rollout: Rollout, gpus: int, gpu: Hardware) -> float:
    """Seconds of decoding the sequences of one rollout, divided among the GPUs."""
    own = -(-rollout.sequences // gpus)
    batches = -(-own // rollout.sampled_together)
    rows = min(own, rollout.sampled_together)
    cached = rollout.prompt_tokens + rollout.tokens / 2  # mean over the steps
    n = plan.shape.matrix_parameters
    read = 2.0 * n + plan.shape.kv_bytes() * cached * rows
    step = max(read / gpu.reading, 2.0 * n * rows / gpu.speed)
    return batches * rollout.tokens * step


def rollout_seconds(plan: Plan, rollout: Rollout, gpus: int, gpu: Hardware) -> dict[str, float]:
    """Seconds of sampling, of scoring by the reference, and of the updates, of one rollout."""
    length = rollout.prompt_tokens + rollout.tokens
    tokens = rollout.sequences * length
    scoring = 0.0
    if plan.has_reference:
        scoring = 2.0 * plan.shape.matrix_parameters * tokens / (gpu.speed * gpus)
    return {
        "sampling": sampling_seconds(plan, rollout, gpus, gpu),
        "reference": scoring,
        "updates": training_seconds(plan, tokens * rollout.epochs, length, gpus, gpu),
    }
