"""The sizes of a model that decide memory and time, counted on the meta device."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedConfig

from pipeline.model.nano import meta_model

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
    window: int  # most tokens of a sequence
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
    """Count the parameters of a model of this configuration, with a linear value head."""
    model = meta_model(config)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = embedding.weight is head.weight
    linear = [m for m in model.modules() if isinstance(m, nn.Linear) and m is not head]
    heads = config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return ModelShape(
        name=name,
        parameters=sum(p.numel() for p in model.parameters()) + config.hidden_size + 1,
        embedding=embedding.weight.numel() * (1 if tied else 2),
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        kv_width=(getattr(config, "num_key_value_heads", None) or heads) * head_size,
        intermediate=config.intermediate_size,
        vocab=config.vocab_size,
        window=config.max_position_embeddings,
        linear_in_and_out=sum(m.in_features + m.out_features for m in linear),
        tied=tied,
        qk_norm=any("q_norm" in name for name, _ in model.named_modules()),
    )


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
    return shape_of(model, AutoConfig.from_pretrained(model))


def dtype_bytes(name: str) -> int:
    """Bytes of a number of that dtype: 4 for float32, 2 for bfloat16."""
    return getattr(torch, name).itemsize
