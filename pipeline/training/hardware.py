"""What training arguments need to fit the machine they run on."""

from datetime import timedelta

import torch
import torch.distributed as dist
from transformers import TrainingArguments


def configure_hardware(args: TrainingArguments) -> None:
    """Use the CPU without a GPU, and bfloat16 where a GPU has it, before `args` is completed.

    `gradient_checkpointing` is handed on under its new name, which saves a warning. Processes need
    not look for parameters without a gradient: there are none, and the search would take the
    outputs apart and lose the values.
    """
    if args.ddp_find_unused_parameters is None:
        args.ddp_find_unused_parameters = False
    if not torch.cuda.is_available():
        args.use_cpu = True
        _join_processes(args)
    # cuDNN's attention builds a plan for every new shape, tens of milliseconds each, and no two
    # minibatches of packed sequences have the same.
    torch.backends.cuda.enable_cudnn_sdp(False)
    if args.bf16 is None:
        args.bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    if getattr(args, "activation_checkpointing", False) is None:
        args.activation_checkpointing = args.gradient_checkpointing


def _join_processes(args: TrainingArguments) -> None:
    """Processes on the CPU wait for each other `ddp_timeout` seconds, as on GPUs; TrainingArguments
    forgets it, and one that hangs would be waited for half an hour."""
    if dist.is_torchelastic_launched() and not dist.is_initialized():
        timeout = timedelta(seconds=args.ddp_timeout)
        dist.init_process_group(args.ddp_backend or "gloo", timeout=timeout)
