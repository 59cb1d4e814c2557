"""Add the reasoning tokens to any Hugging Face causal LM and its tokenizer."""

import json
import logging

import torch
from tokenizers import Tokenizer
from transformers import (
    AddedToken,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from pipeline.chat.tags import END_THINK, THINK
from pipeline.chat.template import configure_tokenizer, control_tokens
from pipeline.model.policy import attach_value_head, has_value_head
from pipeline.model.reasoning import attach_reasoning_layer, has_reasoning_layer

# Tokens that vocabularies have for padding, or that a model never samples.
PAD_CANDIDATES = (
    "<pad>",
    "<|pad|>",
    "[PAD]",
    "<|finetune_right_pad_id|>",
    "<|endoftext|>",
    "<unk>",
)

logger = logging.getLogger(__name__)


def add_reasoning_tokens(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, seed: int = 0
) -> int:
    """Add <think> and </think> in place; return the number of rows added to the embedding.

    0 if the embedding has unused rows, and on every further call. Afterwards each tag is one id,
    pad and EOS are different tokens on which tokenizer, config and generation config agree, and the
    tokenizer has chat template, response template and control tokens. The generation config keeps
    its token ids alone: no temperature, no penalties. Logits of the old tokens do not change.
    Tokens without a row in the embedding get a new one too, with a warning.

    Raises:
        ValueError: the tokenizer is slow or has no EOS token, or the model also takes images.
    """
    _require_usable(tokenizer)
    _require_text_model(model)
    beyond = tokens_without_row(model, tokenizer)
    if beyond:
        names = ", ".join(map(repr, list(beyond)[:5]))
        rows = model.get_input_embeddings().weight.shape[0]
        logger.warning(
            f"{len(beyond):,} tokens have ids beyond the embedding's {rows:,} rows ({names}); they "
            "get new, untrained rows. If the model was trained with them, use another tokenizer"
        )
    old_ids = set(tokenizer.get_vocab().values()) - set(beyond.values())
    _add_tags(tokenizer)
    _set_pad_token(tokenizer)
    _protect_control_tokens(tokenizer)
    ids = set(tokenizer.get_vocab().values())
    grown = _grow_embedding(model, max(ids) + 1)
    sources = _tag_sources(tokenizer, old_ids)
    _init_rows(model, sorted(old_ids), sorted(ids - old_ids), seed, sources)
    if has_value_head(model):
        attach_value_head(model)  # a resize replaces the LM head, which has the hooks
    if has_reasoning_layer(model):
        attach_reasoning_layer(model, model.reasoning_layer)
    _align_ids(model, tokenizer)
    _drop_sampling_options(model)
    configure_tokenizer(tokenizer)
    return grown


def tokens_without_row(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> dict[str, int]:
    """{token: id} of the tokens without a row in the embedding, in the order of the ids."""
    rows = model.get_input_embeddings().weight.shape[0]
    beyond = [(token_id, token) for token, token_id in tokenizer.get_vocab().items()]
    return {token: token_id for token_id, token in sorted(beyond) if token_id >= rows}


def _require_usable(tokenizer: PreTrainedTokenizerBase) -> None:
    name = tokenizer.name_or_path or type(tokenizer).__name__
    if not tokenizer.is_fast:
        raise ValueError(
            f"tokenizer {name!r} is no fast tokenizer, and only those keep user text apart from "
            "control tokens; load it with AutoTokenizer(..., use_fast=True)"
        )
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"tokenizer {name!r} has no EOS token, and a completion must be able to end; "
            "set tokenizer.eos_token to the token that ends its texts"
        )


def _require_text_model(model: PreTrainedModel) -> None:
    if model.config.get_text_config() is not model.config:
        raise ValueError(
            f"{model.name_or_path or type(model).__name__} is a {type(model).__name__} (model_type="
            f"{model.config.model_type}), a language model as a part of a larger one, and only "
            "language models alone are trained here; take one, as google/gemma-3-1b-it is"
        )


def _add_tags(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.extra_special_tokens = [
        token for token in tokenizer.extra_special_tokens if token not in (THINK, END_THINK)
    ]
    tags = [AddedToken(tag, special=False, normalized=False) for tag in (THINK, END_THINK)]
    tokenizer.add_tokens(tags)


def _protect_control_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    """Rebuild the backend so that control tokens match before normalisation only.

    With normalized=True a normalizer such as NFKC would turn a full-width copy in user text into
    the token itself. Only a rebuild makes a special tag ordinary: an existing backend keeps
    skipping it on decoding, even after it is added again with special=False.
    """
    protected = set(control_tokens(tokenizer))
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    for token in state["added_tokens"]:
        token["normalized"] &= token["content"] not in protected
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(state))


def _set_pad_token(tokenizer: PreTrainedTokenizerBase) -> None:
    """Set a pad token other than EOS: many losses mask padding, and would mask EOS with it."""
    taken = {None, tokenizer.eos_token}
    if tokenizer.pad_token not in taken:
        return
    taken |= {tokenizer.bos_token}
    vocabulary = tokenizer.get_vocab()
    known = (token for token in PAD_CANDIDATES if token in vocabulary and token not in taken)
    tokenizer.pad_token = next(known, PAD_CANDIDATES[0])
    tokenizer.add_special_tokens({"pad_token": tokenizer.pad_token})


def _grow_embedding(model: PreTrainedModel, size: int) -> int:
    """Resize the embedding to at least `size` rows; return the number of rows added."""
    # An embedding padded to a round number of rows is not shrunk.
    rows = model.get_input_embeddings().weight.shape[0]
    if size <= rows:
        return 0
    model.resize_token_embeddings(size, mean_resizing=False)
    return size - rows


def _tag_sources(tokenizer: PreTrainedTokenizerBase, old_ids: set[int]) -> dict[int, int]:
    """{id of a tag: id of the known token whose row it starts from}.

    `</think>` ends a span, as end-of-text does; `<think>` starts a line. From the mean row the
    logit of `</think>` is so low that a short SFT does not learn it.
    """
    newline = tokenizer.encode("\n", add_special_tokens=False)
    sources = {END_THINK: tokenizer.eos_token_id, THINK: newline[0] if len(newline) == 1 else None}
    return {
        tokenizer.convert_tokens_to_ids(tag): source
        for tag, source in sources.items()
        if source in old_ids
    }


@torch.no_grad()
def _init_rows(
    model: PreTrainedModel,
    old_ids: list[int],
    new_ids: list[int],
    seed: int,
    sources: dict[int, int],
) -> None:
    """Initialise new rows to that of their source, else to the mean of the old rows, plus noise.

    The noise is a tenth of the rows' standard deviation: the model could not tell equal rows apart.
    The mean row has the mean logit, hence at most an average probability, so predictions hardly
    change (https://nlp.stanford.edu/~johnhew/vocab-expansion.html).
    """
    if not new_ids:
        return
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    generator = torch.Generator().manual_seed(seed)
    # By id: tied input and output weights are initialised once.
    for rows_VD in {id(module.weight): module.weight for module in (embedding, head)}.values():
        old_VD = rows_VD[old_ids].float()
        noise_ND = torch.randn(len(new_ids), rows_VD.shape[1], generator=generator)
        spread_ND = 0.1 * old_VD.std(dim=0) * noise_ND.to(rows_VD.device)
        mean_D = old_VD.mean(dim=0)
        start_ND = torch.stack(
            [rows_VD[sources[i]].float() if i in sources else mean_D for i in new_ids]
        )
        rows_VD[new_ids] = (start_ND + spread_ND).to(rows_VD.dtype)
    if head.bias is not None:
        head.bias[new_ids] = head.bias[old_ids].mean()


def _align_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Set pad, EOS and BOS of all configurations to those of the tokenizer."""
    text_config = model.config.get_text_config()
    for config in {id(c): c for c in (model.config, text_config, model.generation_config)}.values():
        config.pad_token_id = tokenizer.pad_token_id
        # A chat model may have several end-of-turn tokens; keep the others.
        ends = config.eos_token_id if isinstance(config.eos_token_id, list) else []
        if tokenizer.eos_token_id not in ends:
            ends = [tokenizer.eos_token_id, *ends]
        config.eos_token_id = ends if len(ends) > 1 else ends[0]
        if tokenizer.bos_token_id is not None:
            config.bos_token_id = tokenizer.bos_token_id


def _drop_sampling_options(model: PreTrainedModel) -> None:
    """Keep the token ids of the generation config alone.

    Instruct models bring a temperature and a repetition penalty, which `generate`, vLLM and lm-eval
    apply. A penalty changes greedy answers too: a thought repeats the numbers of its question.
    """
    given = model.generation_config
    model.generation_config = GenerationConfig(
        pad_token_id=given.pad_token_id,
        bos_token_id=given.bos_token_id,
        eos_token_id=given.eos_token_id,
    )
