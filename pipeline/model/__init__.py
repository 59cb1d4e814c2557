"""The policy (a causal LM with reasoning tags and a value head), its checkpoints and adapters."""

from pipeline.chat.template import configure_tokenizer, set_default_thinking
from pipeline.model.adapter_files import merge_adapters
from pipeline.model.checkpoint import (
    load_adapters,
    load_policy,
    load_value_head,
    save_policy,
)
from pipeline.model.frozen import freeze_layers
from pipeline.model.inference import load_for_inference
from pipeline.model.lora import (
    export_policy,
    is_adapted,
    lora_config,
    save_adapters,
)
from pipeline.model.nano import build_nano, train_tokenizer
from pipeline.model.policy import ValueHead, attach_value_head, has_value_head, values_of
from pipeline.model.reasoning import (
    HeadOutputs,
    ReasoningLayer,
    all_heads,
    attach_reasoning_layer,
    copy_reasoning_layer,
    has_reasoning_layer,
    new_reasoning_layer,
    reject_reasoning_layer,
)
from pipeline.model.reasoning_file import (
    REASONING_FILE,
    load_reasoning_weights,
    save_reasoning_layer,
    split_reasoning_layer,
)
from pipeline.model.value_head_file import VALUE_HEAD_FILE, save_value_head, split_value_head
from pipeline.model.verifier import (
    VERIFIER_FILE,
    Verifier,
    attach_verifier,
    load_verifier,
    save_verifier,
    verifier_features,
    verifier_of,
)
from pipeline.model.vocab import add_reasoning_tokens

__all__ = [
    "REASONING_FILE",
    "VALUE_HEAD_FILE",
    "VERIFIER_FILE",
    "HeadOutputs",
    "ReasoningLayer",
    "ValueHead",
    "Verifier",
    "add_reasoning_tokens",
    "all_heads",
    "attach_reasoning_layer",
    "attach_value_head",
    "attach_verifier",
    "build_nano",
    "configure_tokenizer",
    "copy_reasoning_layer",
    "export_policy",
    "freeze_layers",
    "has_reasoning_layer",
    "has_value_head",
    "is_adapted",
    "load_adapters",
    "load_for_inference",
    "load_policy",
    "load_reasoning_weights",
    "load_value_head",
    "load_verifier",
    "lora_config",
    "merge_adapters",
    "new_reasoning_layer",
    "reject_reasoning_layer",
    "save_adapters",
    "save_policy",
    "save_reasoning_layer",
    "save_value_head",
    "save_verifier",
    "set_default_thinking",
    "split_reasoning_layer",
    "split_value_head",
    "train_tokenizer",
    "values_of",
    "verifier_features",
    "verifier_of",
]
