"""The weights that vLLM gets of a policy: those of the causal LM alone, adapters merged.

vLLM's `load_weights` fails for a name that its model does not have, so neither the value head nor
the verifier nor adapters may be among them. The rows of the reasoning tags, which peft trains in
place of a low-rank matrix, are written into the embedding.
"""

from collections.abc import Iterable, Iterator

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.trainable_tokens import TrainableTokensLayer
from torch import nn

NOT_OF_THE_LM = ("value_head.", "verifier.")
# Parts of names that peft inserts, and marks of parameters that are merged into others.
INSERTED = (".base_layer", ".token_adapter", ".modules_to_save.default")
MERGED = (".lora_", "trainable_tokens_", ".original_module")
PEFT_PREFIX = "base_model.model."

Weight = tuple[str, torch.Tensor]


def lm_name(name: str) -> str | None:
    """Return the name of a parameter in the plain causal LM; None if it is not one of its.

    >>> lm_name("base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight")
    'model.layers.0.self_attn.q_proj.weight'
    >>> lm_name("value_head.last.weight"), lm_name("model.layers.0.q_proj.lora_A.default.weight")
    (None, None)
    """
    name = name.removeprefix(PEFT_PREFIX)
    if name.startswith(NOT_OF_THE_LM) or any(part in name for part in MERGED):
        return None
    for part in INSERTED:
        name = name.replace(part, "")
    return name


def lm_weights(weights: Iterable[Weight]) -> Iterator[Weight]:
    """Yield the weights of the causal LM under its own names."""
    for name, tensor in weights:
        plain = lm_name(name)
        if plain is not None:
            yield plain, tensor


@torch.no_grad()
def merged_lm_weights(model: nn.Module) -> Iterator[Weight]:
    """Yield the weights of the causal LM of a peft model, one by one, with its adapters merged.

    The model is not changed: merging in place and back would round the frozen weights at every
    synchronisation. Tied weights come once.
    """
    modules = dict(model.named_modules())
    for name, parameter in model.named_parameters():
        plain = lm_name(name)
        if plain is None:
            continue
        owner = name.removesuffix(".weight").removesuffix(".base_layer")
        layer = modules.get(owner)
        adapted = isinstance(layer, LoraLayer | TrainableTokensLayer)
        if adapted and name.endswith(".base_layer.weight"):
            yield plain, _merged(layer, parameter)
        else:
            yield plain, parameter.data


def _merged(layer: LoraLayer | TrainableTokensLayer, base: torch.Tensor) -> torch.Tensor:
    if isinstance(layer, TrainableTokensLayer):
        return layer.get_merged_weights(layer.active_adapters).data
    merged = base.data.clone()
    for adapter in layer.active_adapters:
        merged += layer.get_delta_weight(adapter).to(merged.dtype)
    return merged
