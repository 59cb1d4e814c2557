"""How a model is loaded for training: dtype, attention, weights of 4 bits."""

from importlib.util import find_spec

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from pipeline.config import ModelConfig, require
from pipeline.device import accelerator_type

FLASH_PACKAGES = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}


def check_loading(config: ModelConfig) -> None:
    """Raise ValueError where this machine cannot load a model so; say where packing is lost."""
    attention = config.attn_implementation
    package = FLASH_PACKAGES.get(attention or "")
    require(
        package is None or (accelerator_type() == "cuda" and find_spec(package) is not None),
        f"attn_implementation={attention} needs CUDA and the package {package}; install it, or "
        "leave attn_implementation out",
    )
    if attention not in (None, "sdpa"):
        print(f"note: attn_implementation={attention} pads sequences; only sdpa packs them")
    if config.load_in_4bit:
        require(
            accelerator_type() == "cuda",
            "load_in_4bit=true needs a CUDA GPU, and there is none here; leave it out, or give "
            "use_peft=true and dtype=bfloat16",
        )
        require(
            find_spec("bitsandbytes") is not None,
            "load_in_4bit=true needs the package bitsandbytes; pip install bitsandbytes, or leave "
            "it out",
        )


def loading_options(config: ModelConfig) -> dict[str, object]:
    """The arguments of from_pretrained for attention and 4 bits; call `check_loading` before."""
    options: dict[str, object] = {}
    if config.attn_implementation is not None:
        options["attn_implementation"] = config.attn_implementation
    if config.load_in_4bit:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_compute_dtype=_compute_dtype(),
            bnb_4bit_quant_type=config.bnb_4bit_quant_type,
            bnb_4bit_use_double_quant=config.use_bnb_nested_quant,
        )
        options["device_map"] = {"": torch.accelerator.current_device_index()}
    return options


def is_quantized(model: nn.Module) -> bool:
    """Whether the weights were loaded in 4 bits."""
    return bool(getattr(model, "is_loaded_in_4bit", False))


def _compute_dtype() -> torch.dtype:
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
