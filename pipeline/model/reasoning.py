"""A chain-of-thought module: one more decoder layer with an LM head of its own for the thought.

    trunk ─┬─ norm ─ LM head ───────────────────────── logits of the answer
           └─ decoder layer ─ norm ─ reasoning head ── logits of the thought

`model(ids).logits` at position t are those of the reasoning head where the thought is open after
token t (the last tag up to t is <think>), else those of the LM head. Tokens of the thought and
</think> therefore come from the reasoning head, in training, scoring and decoding alike.
`all_heads(model, ids)` returns both and the values.

The layer has the class of the trunk's last one. It starts as the identity (output projections of
0) with copies of the trunk's norm and LM head, so a new one changes no logits. Its keys and values,
and the tags seen, are two more layers of the KV cache, which every engine copies like the others.

The hooks are plain functions that find the state of a forward pass in the module they are called
with; it is there during one pass only, also if that fails.
"""

from collections import OrderedDict
from collections.abc import Callable
from contextvars import ContextVar
from copy import deepcopy
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import nn
from transformers import Cache, PreTrainedModel

OPEN, CLOSED = 1, 2  # codes of the two tags in the cache; 0 is any other token
_PASS = "_reasoning_pass"


class ReasoningLayer(nn.Module):
    """Decoder layer, norm and head of the thought; (B, T, D) -> logits (B, T, V).

    Attributes:
        layer, norm: read the residual stream of the trunk after its last layer.
        head: the reasoning head; None: the LM head of the model.
        think_id, end_think_id: ids of the tags.
    """

    def __init__(
        self,
        layer: nn.Module,
        norm: nn.Module,
        head: nn.Linear | None,
        *,
        think_id: int,
        end_think_id: int,
    ):
        super().__init__()
        self.layer, self.norm, self.head = layer, norm, head
        self.think_id, self.end_think_id = think_id, end_think_id

    def tag_codes(self, ids_BT: torch.Tensor) -> torch.Tensor:
        """codes_BT, int64: OPEN at <think>, CLOSED at </think>, else 0."""
        return OPEN * (ids_BT == self.think_id) + CLOSED * (ids_BT == self.end_think_id)


class HeadOutputs(NamedTuple):
    """Outputs of all heads at the same positions."""

    completion_logits: torch.Tensor  # (B, T, V), of the LM head
    reasoning_logits: torch.Tensor  # (B, T, V), of the reasoning head
    values: torch.Tensor | None  # (B, T) float32; None without a value head


def new_reasoning_layer(
    model: PreTrainedModel, *, think_id: int, end_think_id: int, tied: bool = False
) -> ReasoningLayer:
    """A layer that changes no logits yet, in the dtype and on the device of the trunk's last one.

    `tied`: read the thought off with the model's own LM head. Raises ValueError for a model whose
    decoder layers cannot be called alone.
    """
    last, norm = _last_layer(model), _trunk(model).norm
    index = len(_trunk(model).layers)
    layer = type(last)(model.config, index - 1)  # layer_types has no entry for one more
    weight = next(last.parameters())
    layer.load_state_dict(last.state_dict())
    layer.to(device=weight.device, dtype=weight.dtype).train(model.training)
    for module in layer.modules():
        if hasattr(module, "layer_idx"):
            module.layer_idx = index
    nn.init.zeros_(layer.self_attn.o_proj.weight)
    nn.init.zeros_(layer.mlp.down_proj.weight)
    for projection in (layer.self_attn.o_proj, layer.mlp.down_proj):
        if projection.bias is not None:
            nn.init.zeros_(projection.bias)
    head = None
    if not tied:
        source = model.get_output_embeddings()
        head = nn.Linear(
            source.in_features,
            source.out_features,
            bias=source.bias is not None,
            device=source.weight.device,
            dtype=source.weight.dtype,
        )
        head.load_state_dict(source.state_dict())
    own_norm = _without_hooks(norm)
    return ReasoningLayer(layer, own_norm, head, think_id=think_id, end_think_id=end_think_id)


def attach_reasoning_layer(model: PreTrainedModel, layer: ReasoningLayer) -> PreTrainedModel:
    """The same model, whose logits of the thought now come from its submodule `reasoning_layer`.

    Call it again after the LM head was replaced (by a resize of the vocabulary). Raises ValueError
    for a model whose decoder layers cannot be called alone, and for a head of another vocabulary.
    """
    last, lm_head = _last_layer(model), model.get_output_embeddings()
    if layer.head is not None and layer.head.weight.shape != lm_head.weight.shape:
        raise ValueError(
            f"the reasoning head has the shape {tuple(layer.head.weight.shape)} and the LM head "
            f"{tuple(lm_head.weight.shape)}; take the tokenizer and the model that were saved with "
            "reasoning_layer.safetensors"
        )
    model.reasoning_layer = layer
    _register(last.register_forward_pre_hook, last._forward_pre_hooks, _keep_arguments, True)
    norm = _trunk(model).norm
    _register(norm.register_forward_pre_hook, norm._forward_pre_hooks, _keep_hidden)
    trunk = _trunk(model)
    _register(trunk.register_forward_hook, trunk._forward_hooks, _run_layer)
    _register(lm_head.register_forward_hook, lm_head._forward_hooks, _route)
    _register(model.register_forward_pre_hook, model._forward_pre_hooks, _begin, True)
    if _end not in model._forward_hooks.values():
        model.register_forward_hook(_end, always_call=True)
    return model


def copy_reasoning_layer(source: PreTrainedModel, target: PreTrainedModel) -> None:
    """Attach a copy of the source's reasoning layer to the target, frozen; nothing without one."""
    if has_reasoning_layer(source):
        layer = deepcopy(source.reasoning_layer).requires_grad_(False)
        attach_reasoning_layer(target, layer.to(target.device))


def has_reasoning_layer(model: nn.Module) -> bool:
    """Whether a reasoning layer is attached to the model."""
    return getattr(model, "reasoning_layer", None) is not None


def reject_reasoning_layer(model: nn.Module, what: str) -> None:
    """Raise ValueError if the model has a reasoning layer, which `what` does not support."""
    if has_reasoning_layer(model):
        raise ValueError(
            f"{what} does not support a model with a reasoning layer (reasoning_layer.safetensors);"
            " SFT, PPO, infer, chat, serve and eval.run do, on one device or with DDP; leave it "
            "out, or train a model without the layer"
        )


_both: ContextVar[bool] = ContextVar("both_heads", default=False)


def all_heads(model: nn.Module, input_ids: torch.Tensor, **kwargs: object) -> HeadOutputs:
    """(completion_logits, reasoning_logits, values) of every position.

    `kwargs` are arguments of the model. Raises ValueError without a reasoning layer.
    """
    if not has_reasoning_layer(model):
        raise ValueError(
            f"this {type(model).__name__} has no reasoning layer; train one with "
            "stages.sft --reasoning_layer true"
        )
    token = _both.set(True)
    try:
        output = model(input_ids=input_ids, **kwargs)
    finally:
        _both.reset(token)
    return HeadOutputs(
        output["completion_logits"], output["reasoning_logits"], output.get("state_values")
    )


# ---- one forward pass ----


@dataclass
class _Pass:
    """State of one forward pass, reachable from every module with a hook."""

    reasoning: ReasoningLayer
    lm_head: nn.Module
    ids_BT: torch.Tensor
    mask: torch.Tensor | None
    keep: object  # logits_to_keep
    args: tuple = ()
    kwargs: dict = field(default_factory=dict)  # of the trunk's last layer
    hidden_BTD: torch.Tensor | None = None  # what enters the trunk's norm
    thought_BTD: torch.Tensor | None = None  # what enters the reasoning head
    open_BT: torch.Tensor | None = None  # the thought is open after the token
    both: tuple[torch.Tensor, torch.Tensor] | None = None


def _begin(model: nn.Module, args: tuple, kwargs: dict) -> None:
    ids_BT = kwargs.get("input_ids", args[0] if args else None)
    if ids_BT is None:
        raise ValueError(
            "a model with a reasoning layer needs input_ids: the tags among them say which head "
            "predicts the next token"
        )
    mask = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
    state = _Pass(
        reasoning=model.reasoning_layer,
        lm_head=model.get_output_embeddings(),
        ids_BT=ids_BT,
        mask=mask if isinstance(mask, torch.Tensor) else None,
        keep=kwargs.get("logits_to_keep", 0),
    )
    for module in _hooked(model):
        module.__dict__[_PASS] = state


def _end(model: nn.Module, args: tuple, output: object) -> None:
    states = [module.__dict__.pop(_PASS, None) for module in _hooked(model)]
    if states[0] is not None and states[0].both and isinstance(output, OrderedDict):
        for name, logits in zip(
            ("completion_logits", "reasoning_logits"), states[0].both, strict=True
        ):
            OrderedDict.__setitem__(output, name, logits)


def _keep_arguments(layer: nn.Module, args: tuple, kwargs: dict) -> None:
    if (state := layer.__dict__.get(_PASS)) is not None:
        state.args, state.kwargs = args[1:], kwargs


def _keep_hidden(norm: nn.Module, args: tuple) -> None:
    if (state := norm.__dict__.get(_PASS)) is not None:
        state.hidden_BTD = args[0]


def _run_layer(trunk: nn.Module, args: tuple, output: object) -> None:
    """Compute what enters the reasoning head, inside the model's own forward and its autocast."""
    if (state := trunk.__dict__.get(_PASS)) is None:
        return
    cache = state.kwargs.get("past_key_values")
    if isinstance(cache, Cache):
        _reserve(cache, len(trunk.layers) + 2)
    result = state.reasoning.layer(state.hidden_BTD, *state.args, **state.kwargs)
    hidden_BTD = result[0] if isinstance(result, tuple) else result
    state.thought_BTD = state.reasoning.norm(hidden_BTD)
    codes_BT = state.reasoning.tag_codes(state.ids_BT)
    if isinstance(cache, Cache):
        codes_BT = _with_cached(codes_BT, cache, len(trunk.layers) + 1, state)
    state.open_BT = is_open(codes_BT)[:, -state.ids_BT.shape[1] :]


def _route(lm_head: nn.Module, args: tuple, logits_BKV: torch.Tensor) -> torch.Tensor | None:
    """The logits, with those of the reasoning head where the thought is open."""
    state = lm_head.__dict__.get(_PASS)
    if state is None or state.thought_BTD is None:
        return None
    kept = slice(-state.keep, None) if isinstance(state.keep, int) else state.keep
    head = state.reasoning.head
    thought_BKD = state.thought_BTD[:, kept]
    if head is None:
        reasoning_BKV = nn.functional.linear(thought_BKD, lm_head.weight, lm_head.bias)
    else:
        reasoning_BKV = head(thought_BKD)
    if _both.get():
        state.both = (logits_BKV, reasoning_BKV)
    return torch.where(state.open_BT[:, kept].unsqueeze(-1), reasoning_BKV, logits_BKV)


def is_open(codes_BT: torch.Tensor) -> torch.Tensor:
    """open_BT: whether the last tag up to each position is OPEN.

    >>> is_open(torch.tensor([[0, 1, 0, 2, 0]])).tolist()
    [[False, True, True, False, False]]
    """
    position_T = torch.arange(codes_BT.shape[1], device=codes_BT.device)
    last_BT = torch.where(codes_BT != 0, position_T, 0).cummax(dim=1).values
    return codes_BT.gather(1, last_BT) == OPEN


def _with_cached(codes_BT: torch.Tensor, cache: Cache, index: int, state: _Pass) -> torch.Tensor:
    """The codes of all tokens in the cache and of the new ones, 0 on padding.

    A buffer of fixed size ends in columns that are not written yet; they are 0 and change nothing.
    """
    assert state.hidden_BTD is not None
    columns_B1T1 = codes_BT[:, None, :, None].to(state.hidden_BTD.dtype)
    codes_BS = cache.update(columns_B1T1, columns_B1T1, index)[0][:, 0, :, 0].round().long()
    mask = state.mask
    if mask is None:
        return codes_BS
    mask_BS = mask if mask.dim() == 2 else mask[:, 0, -1]
    visible_BS = mask_BS == 0 if mask_BS.is_floating_point() else mask_BS.bool()
    return codes_BS * visible_BS[:, : codes_BS.shape[1]]


def _reserve(cache: Cache, count: int) -> None:
    """Append layers to the cache until there are `count`."""
    while len(cache.layers) < count:
        try:
            cache.layers.append(type(cache.layers[-1])())
        except TypeError as error:
            raise ValueError(
                f"a cache of {type(cache.layers[-1]).__name__} cannot grow by the reasoning "
                "layer's keys and values; use a DynamicCache"
            ) from error


# ---- the model ----


def _trunk(model: PreTrainedModel) -> nn.Module:
    return model.base_model


def _hooked(model: PreTrainedModel) -> tuple[nn.Module, ...]:
    trunk = _trunk(model)
    return trunk, trunk.layers[-1], trunk.norm, model.get_output_embeddings()


def _last_layer(model: PreTrainedModel) -> nn.Module:
    """The last decoder layer; ValueError if the model is not of the shape that is supported."""
    trunk, config = model.base_model, model.config
    layers, norm = getattr(trunk, "layers", None), getattr(trunk, "norm", None)
    last = layers[-1] if isinstance(layers, nn.ModuleList) and len(layers) else None
    attention, mlp = getattr(last, "self_attn", None), getattr(last, "mlp", None)
    types = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None) and not hasattr(config, "layer_types")
    fits = (
        isinstance(model, PreTrainedModel)
        and isinstance(norm, nn.Module)
        and type(getattr(attention, "o_proj", None)) is nn.Linear
        and type(getattr(mlp, "down_proj", None)) is nn.Linear
        and type(model.get_output_embeddings()) is nn.Linear
        and types == {"full_attention"}
        and not window
    )
    if last is None or not fits:
        raise ValueError(
            f"{type(model).__name__} cannot have a reasoning layer: it needs decoder layers like "
            "those of Llama, Qwen2 or Qwen3 with full attention, without adapters or weights of "
            "4 bits; leave reasoning_layer out"
        )
    return last


def _without_hooks(module: nn.Module) -> nn.Module:
    copied = deepcopy(module)
    copied._forward_pre_hooks.clear()
    copied._forward_pre_hooks_with_kwargs.clear()
    return copied


def _register(
    register: Callable, registered: dict, hook: Callable, with_kwargs: bool = False
) -> None:
    if hook not in registered.values():
        register(hook, with_kwargs=with_kwargs)
