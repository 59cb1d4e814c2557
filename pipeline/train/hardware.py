"""What training arguments need to fit the machine they run on."""

import torch
from transformers import TrainingArguments


def fit_hardware(args: TrainingArguments) -> None:
    """Use the CPU without a GPU, and bfloat16 where a GPU has it, before `args` is completed.

    `gradient_checkpointing` is handed on under its new name, which saves a warning. Processes need
    not look for parameters without a gradient: there are none, and the search would take the
    outputs apart and lose the values.
    """
    if args.ddp_find_unused_parameters is None:
        args.ddp_find_unused_parameters = False
    if not torch.cuda.is_available():
        args.use_cpu = True
    if args.bf16 is None:
        args.bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    if getattr(args, "activation_checkpointing", False) is None:
        args.activation_checkpointing = args.gradient_checkpointing
