"""Training arguments that depend on the machine, and checks of those that SFT and PPO share."""

from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from transformers import TrainingArguments
from transformers.hf_argparser import HfArg

from pipeline.config import require
from pipeline.device import accelerator_type, bfloat16_is_fast

BATCH_SIZES = (
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
)
# Rules of `require_effect`. Signals save checkpoints under any save_strategy, so that
# save_total_limit always has an effect.
PUSHING: dict[str, tuple[str, ...]] = {
    "push_to_hub=true": ("hub_model_id", "hub_strategy", "hub_private_repo", "hub_revision")
}
SAVING: dict[str, tuple[str, ...]] = {"save_strategy=steps": ("save_steps",)}


@dataclass
class PrecisionOptions:
    """Fields of a training configuration for the precision of its computation."""

    bf16: bool | None = HfArg(default=None, help="bfloat16 autocast; default: on a GPU that has it")
    cpu_bf16: bool = HfArg(
        default=False,
        help="bfloat16 autocast also on a CPU that is faster with it",
    )


def check_training_arguments(args: TrainingArguments) -> None:
    """Raise ValueError for empty batches, and for code from a model's repository."""
    for name in BATCH_SIZES:
        value = getattr(args, name)
        require(value >= 1, f"{name}={value} must be at least 1")
    require(
        not getattr(args, "trust_remote_code", False),
        "trust_remote_code=true would run code of the model's repository, and only architectures "
        "of transformers are loaded; leave it out",
    )


def configure_hardware(args: TrainingArguments) -> None:
    """Use the CPU where there is no accelerator, and bfloat16 autocast where it is fast, on a CPU
    only if `cpu_bf16` asks for it; called in `__post_init__`. Which accelerator is accelerate's
    choice.

    `gradient_checkpointing` is copied to its new name, which avoids a warning. DDP does not search
    for parameters without a gradient: there are none, and the search would drop the values from the
    model's outputs.
    """
    if args.ddp_find_unused_parameters is None:
        args.ddp_find_unused_parameters = False
    accelerator = accelerator_type()
    if accelerator is None:
        args.use_cpu = True
    if args.use_cpu:
        _join_processes(args)
    # cuDNN's attention builds a plan for every new shape, tens of milliseconds each, and packed
    # minibatches hardly ever have the same shape.
    torch.backends.cuda.enable_cudnn_sdp(False)
    if args.bf16 is None:
        kind = "cpu" if args.use_cpu or accelerator is None else accelerator
        args.bf16 = (kind != "cpu" or getattr(args, "cpu_bf16", False)) and bfloat16_is_fast(kind)
    if getattr(args, "activation_checkpointing", False) is None:
        args.activation_checkpointing = args.gradient_checkpointing


def _join_processes(args: TrainingArguments) -> None:
    """Set the timeout of collectives on the CPU to `ddp_timeout` seconds, as on GPUs:
    TrainingArguments ignores it there, and a process that hangs would block for half an hour."""
    if dist.is_torchelastic_launched() and not dist.is_initialized():
        timeout = timedelta(seconds=args.ddp_timeout)
        dist.init_process_group(args.ddp_backend or "gloo", timeout=timeout)
