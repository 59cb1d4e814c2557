"""Build nano, a model with random weights and about a million parameters, and its tokenizer."""

from collections.abc import Iterable

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from pipeline.chat.tags import END_THINK, THINK
from pipeline.chat.template import ASSISTANT, USER, configure_tokenizer
from pipeline.model.weights import disable_zero3_init

PAD = "<pad>"
EOS = "<eos>"
SPECIAL_TOKENS = (PAD, EOS, USER, ASSISTANT)


def train_tokenizer(texts: Iterable[str], vocab_size: int = 512) -> PreTrainedTokenizerFast:
    """A lossless byte-level BPE tokenizer with chat template and reasoning tags.

    Every digit is one token, so that digits of the same place value align with tokens.
    `vocab_size` is the maximum number of tokens, including the six added ones.

    Raises:
        ValueError: `vocab_size` is too small for 256 bytes and the six added tokens.
    """
    bytes_ = pre_tokenizers.ByteLevel.alphabet()
    smallest = len(bytes_) + len(SPECIAL_TOKENS) + 2
    if vocab_size < smallest:
        raise ValueError(
            f"vocab_size={vocab_size} must be at least {smallest}, for 256 bytes and 6 added tokens"
        )
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 2,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(bytes_),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return _wrap(backend)


def build_nano(
    tokenizer: PreTrainedTokenizerFast,
    *,
    hidden_size: int = 128,
    num_hidden_layers: int = 4,
    num_attention_heads: int = 4,
    intermediate_size: int = 384,
    max_position_embeddings: int = 4096,
    rope_theta: float = 10_000.0,
    seed: int = 0,
    tie: bool = True,
) -> PreTrainedModel:
    """A Qwen3 in float32 on the CPU with random weights that depend on `seed` only, in eval mode.

    Qwen3 normalises queries and keys, which keeps training stable at high learning rates. Weights
    have a standard deviation of 0.02, so the initial logits are near 0 (about 0.02 *
    sqrt(hidden_size) = 0.2) and the initial loss is near log(vocab_size).
    """
    config = nano_config(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=num_attention_heads,
        intermediate_size=intermediate_size,
        max_position_embeddings=max_position_embeddings,
        rope_theta=rope_theta,
        tie=tie,
    )
    config.pad_token_id, config.eos_token_id = tokenizer.pad_token_id, tokenizer.eos_token_id
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen3ForCausalLM(config).eval()


def nano_config(
    *,
    vocab_size: int,
    hidden_size: int,
    num_hidden_layers: int,
    num_attention_heads: int,
    intermediate_size: int,
    max_position_embeddings: int = 4096,
    rope_theta: float = 10_000.0,
    tie: bool = True,
) -> Qwen3Config:
    """The architecture of `build_nano` in any size; every attention head has keys of its own."""
    return Qwen3Config(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=num_attention_heads,
        num_key_value_heads=num_attention_heads,
        head_dim=hidden_size // num_attention_heads,
        intermediate_size=intermediate_size,
        max_position_embeddings=max_position_embeddings,
        rope_parameters={"rope_type": "default", "rope_theta": rope_theta},
        tie_word_embeddings=tie,
        pad_token_id=None,
        eos_token_id=None,
        bos_token_id=None,
        dtype="float32",
    )


def meta_model(config: PretrainedConfig) -> PreTrainedModel:
    """The model of a configuration on the meta device: shapes without memory, of any size."""
    with torch.device("meta"):
        disable_zero3_init()
        return AutoModelForCausalLM.from_config(config)


def _wrap(backend: Tokenizer) -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        eos_token=EOS,
        extra_special_tokens=[USER, ASSISTANT],
        clean_up_tokenization_spaces=False,
    )
    tags = [AddedToken(tag, special=False, normalized=False) for tag in (THINK, END_THINK)]
    tokenizer.add_tokens(tags)
    configure_tokenizer(tokenizer)
    return tokenizer
