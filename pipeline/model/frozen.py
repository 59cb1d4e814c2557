"""Freeze the bottom layers of a causal LM: the backward pass ends above them.

A training step costs one forward and two backward units a layer. With half of the layers frozen it
costs 2/3; unlike with LoRA the other half is trained in full rank.
"""

import torch
from torch import nn
from transformers import PreTrainedModel


def freeze_layers(model: PreTrainedModel, count: int) -> None:
    """Freeze the input embedding and the first `count` layers in place; nothing for 0.

    A tied embedding still learns as LM head, so the rows of the reasoning tags are trained. Raises
    ValueError if the model has no more than `count` layers.
    """
    if count == 0:
        return
    layers = _layers(model)
    if count >= len(layers):
        raise ValueError(
            f"frozen_layers={count} must be less than the {len(layers)} layers of "
            f"{type(model).__name__}; the last ones are what is trained"
        )
    for layer in layers[:count]:
        layer.requires_grad_(False)
    embedding = model.get_input_embeddings()
    if embedding.weight is not model.get_output_embeddings().weight:
        embedding.requires_grad_(False)
    if _detach not in embedding._forward_hooks.values():
        embedding.register_forward_hook(_detach)


def _detach(module: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
    """The output without its graph: no gradient has to pass the frozen layers to a tied weight."""
    return output.detach()


def _layers(model: PreTrainedModel) -> nn.ModuleList:
    count = model.config.get_text_config().num_hidden_layers
    lists = (m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == count)
    layers = next(lists, None)
    if layers is None:
        raise ValueError(
            f"frozen_layers needs a model whose layers are one list, and {type(model).__name__} "
            "has none; leave it out"
        )
    return layers
