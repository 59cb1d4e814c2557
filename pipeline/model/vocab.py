"""Adds the reasoning tokens to any Hugging Face causal LM and its tokenizer."""

import json
import logging

import torch
from tokenizers import Tokenizer
from transformers import AddedToken, PreTrainedModel, PreTrainedTokenizerBase

from pipeline.chat.tags import END_THINK, THINK
from pipeline.chat.template import configure_tokenizer, control_tokens
from pipeline.model.policy import attach_value_head, has_value_head

# Tokens that vocabularies ship for padding, or that a model never samples.
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
    """Rows the embedding grew by; 0 where the vocabulary had room, and on every further call.

    Afterwards <think> and </think> are one id each, pad and EOS are two different tokens that
    tokenizer, config and generation config agree on, and the tokenizer has its chat template,
    response template and list of control tokens. Logits of the old tokens stay what they were.
    Tokens that the tokenizer had and the embedding has no row for are named in a warning, and start
    as the new ones do.
    """
    _require_usable(tokenizer)
    beyond = tokens_without_row(model, tokenizer)
    if beyond:
        names = ", ".join(map(repr, list(beyond)[:5]))
        rows = model.get_input_embeddings().weight.shape[0]
        logger.warning(
            f"{len(beyond):,} tokens have ids beyond the embedding's {rows:,} rows ({names}); they "
            "get new rows, untrained. If the model was trained with them, its tokenizer is another"
        )
    old_ids = set(tokenizer.get_vocab().values()) - set(beyond.values())
    _add_tags(tokenizer)
    _set_pad_token(tokenizer)
    _protect_control_tokens(tokenizer)
    ids = set(tokenizer.get_vocab().values())
    grown = _grow_embedding(model, max(ids) + 1)
    _init_rows(model, sorted(old_ids), sorted(ids - old_ids), seed)
    if has_value_head(model):
        attach_value_head(model)  # a resize replaces the LM head the value head listens to
    _align_ids(model, tokenizer)
    configure_tokenizer(tokenizer)
    return grown


def tokens_without_row(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> dict[str, int]:
    """{token: id} of the tokens that the embedding has no row for, by id."""
    rows = model.get_input_embeddings().weight.shape[0]
    beyond = [(token_id, token) for token, token_id in tokenizer.get_vocab().items()]
    return {token: token_id for token_id, token in sorted(beyond) if token_id >= rows}


def _require_usable(tokenizer: PreTrainedTokenizerBase) -> None:
    name = tokenizer.name_or_path or type(tokenizer).__name__
    if not tokenizer.is_fast:
        raise ValueError(
            f"tokenizer {name!r} does not run on the tokenizers library, and user text can only be "
            "kept apart from control tokens there; load it with AutoTokenizer(..., use_fast=True)"
        )
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"tokenizer {name!r} has no EOS token, and a completion must be able to end; "
            "set tokenizer.eos_token to the token that ends its texts"
        )


def _add_tags(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.extra_special_tokens = [
        token for token in tokenizer.extra_special_tokens if token not in (THINK, END_THINK)
    ]
    tags = [AddedToken(tag, special=False, normalized=False) for tag in (THINK, END_THINK)]
    tokenizer.add_tokens(tags)


def _protect_control_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    """Rebuild the backend with control tokens that are matched in raw text only.

    With normalized=True a normalizer such as NFKC turns a full-width copy in user text into the
    token itself. The rebuild also makes a tag that once was special plain for good: the living
    backend goes on skipping it on decoding, as whatever it is added later.
    """
    protected = set(control_tokens(tokenizer))
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    for token in state["added_tokens"]:
        token["normalized"] &= token["content"] not in protected
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(state))


def _set_pad_token(tokenizer: PreTrainedTokenizerBase) -> None:
    """A pad token other than EOS: padding that equals EOS gets EOS masked out of many a loss."""
    taken = {None, tokenizer.eos_token}
    if tokenizer.pad_token not in taken:
        return
    taken |= {tokenizer.bos_token}
    vocabulary = tokenizer.get_vocab()
    known = (token for token in PAD_CANDIDATES if token in vocabulary and token not in taken)
    tokenizer.pad_token = next(known, PAD_CANDIDATES[0])
    tokenizer.add_special_tokens({"pad_token": tokenizer.pad_token})


def _grow_embedding(model: PreTrainedModel, size: int) -> int:
    # A vocabulary padded to a round number keeps its rows; shrinking it would gain nothing.
    rows = model.get_input_embeddings().weight.shape[0]
    if size <= rows:
        return 0
    model.resize_token_embeddings(size, mean_resizing=False)
    return size - rows


@torch.no_grad()
def _init_rows(model: PreTrainedModel, old_ids: list[int], new_ids: list[int], seed: int) -> None:
    """New rows start at the mean of the old ones, plus a tenth of their spread.

    The mean row has the mean logit, hence at most an average probability: the model's predictions
    hardly move (https://nlp.stanford.edu/~johnhew/vocab-expansion.html). The noise sets the tags
    apart: from two equal rows a model could not learn which of them it has read.
    """
    if not new_ids:
        return
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    generator = torch.Generator().manual_seed(seed)
    # Once where input and output share their weight.
    for rows_VD in {id(module.weight): module.weight for module in (embedding, head)}.values():
        old_VD = rows_VD[old_ids].float()
        noise_ND = torch.randn(len(new_ids), rows_VD.shape[1], generator=generator)
        spread_ND = 0.1 * old_VD.std(dim=0) * noise_ND.to(rows_VD.device)
        rows_VD[new_ids] = (old_VD.mean(dim=0) + spread_ND).to(rows_VD.dtype)
    if head.bias is not None:
        head.bias[new_ids] = head.bias[old_ids].mean()


def _align_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    text_config = model.config.get_text_config()
    for config in {id(c): c for c in (model.config, text_config, model.generation_config)}.values():
        config.pad_token_id = tokenizer.pad_token_id
        # A chat model may end a turn with one of several tokens; keep the others.
        ends = config.eos_token_id if isinstance(config.eos_token_id, list) else []
        if tokenizer.eos_token_id not in ends:
            ends = [tokenizer.eos_token_id, *ends]
        config.eos_token_id = ends if len(ends) > 1 else ends[0]
        if tokenizer.bos_token_id is not None:
            config.bos_token_id = tokenizer.bos_token_id
