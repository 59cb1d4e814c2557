"""The sizes of a model that decide memory and time, counted on the meta device."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedConfig
from transformers.pytorch_utils import Conv1D

from pipeline.model.nano import meta_model
from pipeline.model.resolve import hub_name

# Architectures that are known without the Hub, by the last part of their Hub id.
KNOWN: dict[str, tuple[str, dict[str, int]]] = {
    f"qwen2.5-{size}": (
        "qwen2",
        {
            "vocab_size": vocab,
            "hidden_size": hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "intermediate_size": inner,
            "max_position_embeddings": 32_768,
            "tie_word_embeddings": tied,
        },
    )
    for size, vocab, hidden, layers, heads, kv_heads, inner, tied in (
        ("0.5b", 151_936, 896, 24, 14, 2, 4864, True),
        ("1.5b", 151_936, 1536, 28, 12, 2, 8960, True),
        ("3b", 151_936, 2048, 36, 16, 2, 11_008, True),
        ("7b", 152_064, 3584, 28, 28, 4, 18_944, False),
    )
} | {
    "smollm2-135m": (
        "llama",
        {
            "vocab_size": 49_152,
            "hidden_size": 576,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "intermediate_size": 1536,
            "max_position_embeddings": 8192,
            "tie_word_embeddings": True,
        },
    )
}


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a causal LM with a linear value head."""

    name: str
    parameters: int  # with the value head, tied weights once
    embedding: int  # parameters of embedding and LM head, tied ones once
    layers: int
    hidden: int
    kv_width: int  # key-value heads times head size
    intermediate: int
    vocab: int
    window: int | None  # most tokens of a sequence; None without a bound (ALiBi)
    linear_in_and_out: int  # inputs plus outputs, summed over the linear layers of all layers
    tied: bool
    qk_norm: bool  # queries and keys are normalized, as in Qwen3

    @property
    def matrix_parameters(self) -> int:
        """Parameters of the matrix products of a token: all layers and the LM head."""
        head = self.vocab * self.hidden
        return self.parameters - self.embedding + head

    def adapter_parameters(self, rank: int) -> int:
        """Parameters that LoRA trains: matrices of this rank in every linear layer, the two rows of
        the reasoning tags in embedding and LM head, and the value head."""
        rows = 2 * self.hidden * (1 if self.tied else 2)
        return rank * self.linear_in_and_out + rows + self.hidden + 1

    def kv_bytes(self, bytes_per_number: int = 2) -> int:
        """Bytes of keys and values of one token in all layers."""
        return 2 * self.layers * self.kv_width * bytes_per_number


def shape_of(name: str, config: PreTrainedConfig) -> ModelShape:
    """Count the parameters of a model of this configuration, with a linear value head.

    Raises:
        ValueError: the configuration lacks a size that the plan needs.
    """
    try:
        return _counted(name, config)
    except AttributeError as error:
        raise ValueError(
            f"model={name} has an architecture that the plan does not know, {config.model_type} "
            f"({error}): give a model of another one"
        ) from None


def _counted(name: str, config: PreTrainedConfig) -> ModelShape:
    model = meta_model(config)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = embedding.weight is head.weight
    # Conv1D, of GPT-2, is a linear layer with a transposed weight.
    linear = [m for m in model.modules() if isinstance(m, (nn.Linear, Conv1D)) and m is not head]
    heads = config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return ModelShape(
        name=name,
        parameters=sum(p.numel() for p in model.parameters()) + head.weight.shape[1] + 1,
        embedding=embedding.weight.numel() * (1 if tied else 2),
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        kv_width=_kv_heads(config) * head_size,
        intermediate=_intermediate_size(config),
        vocab=config.vocab_size,
        window=getattr(config, "max_position_embeddings", None),
        linear_in_and_out=sum(sum(m.weight.shape) for m in linear),
        tied=tied,
        qk_norm=any("q_norm" in name for name, _ in model.named_modules()),
    )


def _kv_heads(config: PreTrainedConfig) -> int:
    """Number of key-value heads; of a Falcon with multi-query attention 1."""
    if getattr(config, "multi_query", False) and not getattr(
        config, "new_decoder_architecture", False
    ):
        return 1
    names = ("num_key_value_heads", "num_kv_heads", "num_attention_heads")
    return next(filter(None, (getattr(config, name, None) for name in names)))


def _intermediate_size(config: PreTrainedConfig) -> int:
    """Width of the MLP under the names of the families, 4 times the hidden size by default."""
    if config.model_type == "bloom":
        return 4 * config.hidden_size
    for name in ("ffn_dim", "ffn_hidden_size", "n_inner"):  # OPT, Falcon, GPT-2
        if hasattr(config, name):
            return getattr(config, name) or 4 * config.hidden_size
    return config.intermediate_size or 4 * config.hidden_size


def find_shape(model: str, nano: PreTrainedConfig | None = None) -> ModelShape:
    """Return the shape of a configuration's `model`: nano, a folder, a known name, or a Hub id.

    Args:
        nano: the configuration of model=nano.

    Raises:
        ValueError, OSError: the model is in none of these places.
    """
    if model == "nano" and nano is not None:
        return shape_of("nano", nano)
    name = model.partition("@")[0].rstrip("/").rpartition("/")[2].lower().removesuffix("-instruct")
    if model == "smol":
        name = "smollm2-135m"
    if name in KNOWN:
        family, sizes = KNOWN[name]
        return shape_of(name, AutoConfig.for_model(family, **sizes))
    if Path(model).exists():
        return shape_of(model, AutoConfig.from_pretrained(model))
    repo, revision = hub_name(model, Path(model)) or (model, None)
    return shape_of(model, AutoConfig.from_pretrained(repo, revision=revision))


def dtype_bytes(name: str) -> int:
    """Bytes of a number of that dtype: 4 for float32, 2 for bfloat16."""
    return getattr(torch, name).itemsize
