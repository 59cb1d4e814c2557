"""A causal LM and its value head on one trunk: one forward gives logits and values.

    output = model(input_ids, attention_mask=mask)
    output.logits      (B, T, V)
    values_of(output)  (B, T)    V before the next token, at the same positions as the logits

The value head reads what enters the LM head. It therefore works on every causal LM, costs D
products a position, and follows `logits_to_keep`: where logits are kept, values are kept. TRL fuses
the LM head into the loss and never calls it; then the value head reads what leaves the trunk.

The hooks are plain functions that find everything through the module they are called with. Copies
(deepcopy), wrappers (DDP) and replaced `forward` methods (trl, accelerate) need no care for this.
"""

from collections import OrderedDict
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel


class ValueHead(nn.Module):
    """Expected reward from here on, one number a position; 0 everywhere until it has been trained.

    Linear by default; `hidden` puts one layer of that width before it. Computes in float32 whatever
    the precision around it: returns differ by less than bfloat16 can tell.
    """

    def __init__(self, hidden_size: int, *, hidden: int | None = None):
        super().__init__()
        self.hidden_size = hidden_size
        self.hidden = hidden
        self.detached = False  # True: no gradient into the trunk, as while the head warms up
        self.inner = nn.Sequential(_Linear32(hidden_size, hidden), nn.GELU()) if hidden else None
        self.last = _Linear32(hidden or hidden_size, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, hidden_BTD: torch.Tensor) -> torch.Tensor:
        if self.detached:
            hidden_BTD = hidden_BTD.detach()
        with torch.autocast(hidden_BTD.device.type, enabled=False):
            if self.inner is not None:
                hidden_BTD = self.inner(hidden_BTD)
            return self.last(hidden_BTD).squeeze(-1)


def attach_value_head(
    model: PreTrainedModel, head: ValueHead | None = None, *, hidden: int | None = None
) -> PreTrainedModel:
    """The same model; from now on every forward has values, from its submodule `value_head`.

    A model that has a value head keeps it, unless `head` is given. Call it again after something
    replaced the LM head (a resize), and on a PEFT wrapper around the model.
    """
    lm_head = model.get_output_embeddings()
    if lm_head is None:
        raise ValueError(
            f"{type(model).__name__} has no output embeddings for a value head to share its input "
            "with; load the model with AutoModelForCausalLM"
        )
    if head is not None or not has_value_head(model):
        head = head or ValueHead(lm_head.weight.shape[1], hidden=hidden)
        model.value_head = head.to(lm_head.weight.device)
    lm_head, trunk = _sources(model)
    if _keep_input not in lm_head._forward_pre_hooks.values():
        lm_head.register_forward_pre_hook(_keep_input)
    if _keep_output not in trunk._forward_hooks.values():
        trunk.register_forward_hook(_keep_output)
    if _add_values not in model._forward_hooks.values():
        model.register_forward_pre_hook(_start_keeping)
        model.register_forward_hook(_add_values, always_call=True)
    return model


def has_value_head(model: nn.Module) -> bool:
    return getattr(model, "value_head", None) is not None


def values_of(output: Any) -> torch.Tensor:
    """values_BT of a forward's output."""
    if not isinstance(output, dict) or "values" not in output:
        raise ValueError(
            f"{type(output).__name__} has no values; attach_value_head(model) comes before the "
            "forward, and the forward must pass through model(...) and its LM head"
        )
    return output["values"]


class _Linear32(nn.Linear):
    """A linear layer that computes in float32, also when its weights were cast to another type."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x.float(), self.weight.float(), self.bias.float())


# Hidden states wait in a list on the module they pass, and only for the time of one forward, also
# when it fails: a tensor left behind would hold its graph, and no module with one can be copied.


def _sources(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model  # out of PEFT
    return plain.get_output_embeddings(), plain.base_model


def _start_keeping(model: nn.Module, args: tuple) -> None:
    for module in _sources(model):
        module.__dict__["_hidden"] = []


def _keep_input(lm_head: nn.Module, args: tuple) -> None:
    if (kept := lm_head.__dict__.get("_hidden")) is not None:
        kept.append(args[0])


def _keep_output(trunk: nn.Module, args: tuple, output: Any) -> None:
    if (kept := trunk.__dict__.get("_hidden")) is not None:
        kept.append(output[0])


def _add_values(model: nn.Module, args: tuple, output: Any) -> None:
    kept = [module.__dict__.pop("_hidden", None) for module in _sources(model)]
    hidden_BTD = next((hidden[0] for hidden in kept if hidden), None)
    # None where a module inside (of a PEFT wrapper) has added the values already.
    if hidden_BTD is not None and isinstance(output, OrderedDict):
        # As a key alone: as an attribute too, which is what ModelOutput makes of it, it would hide
        # the method `values` that everything calls which walks through an output.
        OrderedDict.__setitem__(output, "values", model.value_head(hidden_BTD))
