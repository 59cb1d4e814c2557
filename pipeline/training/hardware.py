"""Training arguments that depend on the machine."""

from datetime import timedelta

import torch
import torch.distributed as dist
from transformers import TrainingArguments


def configure_hardware(args: TrainingArguments) -> None:
    """Use the CPU without a GPU, and bfloat16 where a GPU has it; called in `__post_init__`.

    `gradient_checkpointing` is copied to its new name, which avoids a warning. DDP does not search
    for parameters without a gradient: there are none, and the search would drop the values from the
    model's outputs.
    """
    if args.ddp_find_unused_parameters is None:
        args.ddp_find_unused_parameters = False
    if not torch.cuda.is_available():
        args.use_cpu = True
        _join_processes(args)
    # cuDNN's attention builds a plan for every new shape, tens of milliseconds each, and packed
    # minibatches hardly ever have the same shape.
    torch.backends.cuda.enable_cudnn_sdp(False)
    if args.bf16 is None:
        args.bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    if getattr(args, "activation_checkpointing", False) is None:
        args.activation_checkpointing = args.gradient_checkpointing


def _join_processes(args: TrainingArguments) -> None:
    """Set the timeout of collectives on the CPU to `ddp_timeout` seconds, as on GPUs:
    TrainingArguments ignores it there, and a process that hangs would block for half an hour."""
    if dist.is_torchelastic_launched() and not dist.is_initialized():
        timeout = timedelta(seconds=args.ddp_timeout)
        dist.init_process_group(args.ddp_backend or "gloo", timeout=timeout)
