"""Freeze the bottom layers of a causal LM: the backward pass ends above them.

A training step costs one forward and two backward units a layer. With half of the layers frozen it
costs 2/3; unlike with LoRA the other half is trained in full rank.
"""

import torch
from torch import nn
from transformers import PreTrainedModel


def freeze_layers(model: PreTrainedModel, count: int) -> None:
    """Freeze what precedes the layers and the first `count` layers in place; nothing for 0.

    Frozen are the input embedding, learned positions (GPT-2, OPT) and projections (OPT). A tied
    embedding still learns as LM head, so the rows of the reasoning tags are trained.

    Raises:
        ValueError: the model has no more than `count` layers.
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
    tied = {id(parameter) for parameter in model.get_output_embeddings().parameters()}
    for parameter in _parameters_before(layers[0], model):
        if id(parameter) not in tied:
            parameter.requires_grad_(False)
    embedding, first = model.get_input_embeddings(), layers[count]
    # A tied embedding is trained: without the first hook the frozen layers would store activations.
    if _detach not in embedding._forward_hooks.values():
        embedding.register_forward_hook(_detach)
    if _detach_hidden not in first._forward_pre_hooks.values():
        first.register_forward_pre_hook(_detach_hidden, with_kwargs=True)


def _detach(module: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
    """The output without its graph: no gradient has to pass the frozen layers to a tied weight."""
    return output.detach()


def _detach_hidden(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """The arguments of a layer, its hidden states without their graph: the backward pass ends."""
    if args:
        return (args[0].detach(), *args[1:]), kwargs
    return args, kwargs | {"hidden_states": kwargs["hidden_states"].detach()}


class _LayerReachedError(Exception):
    """Ends the forward pass of `_parameters_before`."""


@torch.no_grad()
def _parameters_before(layer: nn.Module, model: PreTrainedModel) -> list[nn.Parameter]:
    """The parameters of all modules that a forward pass calls before `layer`."""
    found: list[nn.Parameter] = []

    def stop(module: nn.Module, args: tuple) -> None:
        raise _LayerReachedError

    def note(module: nn.Module, args: tuple) -> None:
        found.extend(module.parameters(recurse=False))

    hooks = [layer.register_forward_pre_hook(stop)]
    hooks += [module.register_forward_pre_hook(note) for module in model.modules()]
    was_training = model.training
    model.eval()  # dropout would draw random numbers
    try:
        model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device), use_cache=False)
    except _LayerReachedError:
        pass
    finally:
        for hook in hooks:
            hook.remove()
        model.train(was_training)
    return found


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
