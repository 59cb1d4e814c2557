"""A value head on the trunk of a causal LM: one forward pass gives logits and values.

    output = model(input_ids, attention_mask=mask)
    output.logits      (B, T, V)
    values_of(output)  (B, T)    V before the next token, at the same positions as the logits

The value head reads the input of the LM head. It therefore works with every causal LM, costs D
multiplications a position, and follows `logits_to_keep`: values are at the positions of the logits.
If the LM head is not called (TRL fuses it into the loss), it reads the output of the trunk.

The hooks are plain functions that reach everything through the module they are called with, so they
work in copies (deepcopy), wrappers (DDP) and with replaced `forward` methods (trl, accelerate).
"""

from collections import OrderedDict

import torch
from torch import nn
from transformers import PreTrainedModel


class ValueHead(nn.Module):
    """Predicts the return from each position, (B, T, D) -> (B, T); 0 until it is trained.

    Linear by default; `hidden` is the width of a hidden layer before it. Computes in float32 under
    any autocast: differences between returns are smaller than the resolution of bfloat16.
    """

    def __init__(self, hidden_size: int, *, hidden: int | None = None):
        super().__init__()
        self.hidden_size = hidden_size
        self.hidden = hidden
        self.detached = False  # True: no gradient into the trunk (value warm-up)
        self.inner = nn.Sequential(_Linear32(hidden_size, hidden), nn.GELU()) if hidden else None
        self.last = _Linear32(hidden or hidden_size, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, hidden_BTD: torch.Tensor) -> torch.Tensor:
        """values_BT in float32."""
        if self.detached:
            hidden_BTD = hidden_BTD.detach()
        with torch.autocast(hidden_BTD.device.type, enabled=False):
            if self.inner is not None:
                hidden_BTD = self.inner(hidden_BTD)
            return self.last(hidden_BTD).squeeze(-1)


def attach_value_head(
    model: PreTrainedModel, head: ValueHead | None = None, *, hidden: int | None = None
) -> PreTrainedModel:
    """The same model, whose forward output now has values from its submodule `value_head`.

    An existing value head is kept unless `head` is given. Call it again after the LM head was
    replaced (by a resize of the vocabulary), and on a PEFT wrapper around the model.

    Raises:
        ValueError: the model has no output embeddings.
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
    """Whether a value head is attached to the model."""
    return getattr(model, "value_head", None) is not None


def values_of(output: object) -> torch.Tensor:
    """values_BT of the output of a forward pass, float32.

    Raises:
        ValueError: the model had no value head.
    """
    if not isinstance(output, dict) or "state_values" not in output:
        raise ValueError(
            f"{type(output).__name__} has no values; call attach_value_head(model) before the "
            "forward pass, and run it through model(...)"
        )
    return output["state_values"]


class _Linear32(nn.Linear):
    """A linear layer that computes in float32, whatever the dtype of its weights."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x.float(), self.weight.float(), self.bias.float())


# Hidden states are kept in a list on the module they pass, for one forward pass only, also if that
# fails: a tensor left there would keep its autograd graph alive, and prevent a deepcopy.


def _sources(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model  # out of PEFT
    return plain.get_output_embeddings(), plain.base_model


def _start_keeping(model: nn.Module, args: tuple) -> None:
    for module in _sources(model):
        module.__dict__["_hidden"] = []


def _keep_input(lm_head: nn.Module, args: tuple) -> None:
    if (kept := lm_head.__dict__.get("_hidden")) is not None:
        kept.append(args[0])


def _keep_output(trunk: nn.Module, args: tuple, output: tuple) -> None:
    if (kept := trunk.__dict__.get("_hidden")) is not None:
        kept.append(output[0])


def _add_values(model: nn.Module, args: tuple, output: object) -> None:
    kept = [module.__dict__.pop("_hidden", None) for module in _sources(model)]
    hidden_BTD = next((hidden[0] for hidden in kept if hidden), None)
    # None if the model inside a PEFT wrapper has added the values already.
    if hidden_BTD is not None and isinstance(output, OrderedDict):
        # Not "values": as an attribute of the output it would hide the method of dict.
        output["state_values"] = model.value_head(hidden_BTD)
