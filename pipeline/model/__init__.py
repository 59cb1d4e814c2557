"""The policy: a causal LM that knows the reasoning tags, with a value head on its trunk."""

from pipeline.chat.template import dress_tokenizer, set_default_thinking
from pipeline.model.checkpoint import (
    VALUE_HEAD_FILE,
    load_policy,
    load_value_head,
    save_policy,
    save_value_head,
    split_value_head,
)
from pipeline.model.lora import (
    export_policy,
    is_adapted,
    load_adapters,
    lora_config,
    merge_adapters,
    save_adapters,
)
from pipeline.model.nano import build_nano, train_tokenizer
from pipeline.model.policy import ValueHead, attach_value_head, has_value_head, values_of
from pipeline.model.verifier import (
    CRITIC_FILE,
    PathCritic,
    attach_critic,
    critic_of,
    load_critic,
    path_features,
    save_critic,
)
from pipeline.model.vocab import add_reasoning_tokens

__all__ = [
    "CRITIC_FILE",
    "VALUE_HEAD_FILE",
    "PathCritic",
    "ValueHead",
    "add_reasoning_tokens",
    "attach_critic",
    "attach_value_head",
    "build_nano",
    "critic_of",
    "dress_tokenizer",
    "export_policy",
    "has_value_head",
    "is_adapted",
    "load_adapters",
    "load_critic",
    "load_policy",
    "load_value_head",
    "lora_config",
    "merge_adapters",
    "path_features",
    "save_adapters",
    "save_critic",
    "save_policy",
    "save_value_head",
    "set_default_thinking",
    "split_value_head",
    "train_tokenizer",
    "values_of",
]
