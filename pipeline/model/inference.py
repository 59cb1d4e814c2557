"""Load a checkpoint to run it: on the chosen device, in the chosen dtype."""

from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.device import DTYPES, DeviceOptions, choose_dtype, use_device
from pipeline.model.checkpoint import load_policy


def load_for_inference(
    folder: str | Path, options: DeviceOptions | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """(model, tokenizer) in eval mode on the device of the options, with the value head if any.

    The value head stays float32 and the verifier on the CPU. Raises as `load_policy` does, and
    ValueError for a device that is not there.
    """
    options = options or DeviceOptions()
    device = use_device(options.device)
    model, tokenizer = load_policy(folder, value_head="optional", dtype=DTYPES.get(options.dtype))
    quantized = getattr(model, "quantization_method", None) is not None
    dtype = choose_dtype(options.dtype, model.dtype, device)
    if dtype != model.dtype and options.dtype in ("auto", "fastest") and not quantized:
        cast(model, dtype)
    return model.to(device), tokenizer


def cast(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Convert the weights in place, without the value head and the buffers, which are float32."""
    for name, parameter in model.named_parameters():
        if not name.startswith("value_head."):
            parameter.data = parameter.data.to(dtype)
    model.config.dtype = dtype


def placement(model: nn.Module) -> dict[str, str]:
    """{"device", "dtype"} of a model, for metrics.json."""
    device, dtype = getattr(model, "device", "cpu"), getattr(model, "dtype", None)
    return {"device": str(device), "dtype": str(dtype).removeprefix("torch.")}
