"""Save and load checkpoints: a plain Hugging Face folder with value head and verifier beside it.

    model.safetensors, config.json, tokenizer files   read by AutoModelForCausalLM, lm-eval, vLLM
    value_head.safetensors                            the value head; its shape is in the metadata
    reasoning_layer.safetensors                       the reasoning layer, if there is one
    verifier.safetensors                              the verifier, if one was trained

A folder of adapters (adapter_config.json) is a checkpoint too: it loads as its base model with the
adapters merged, and with its own tokenizer if it has one. No file is a pickle. `load_policy` and
`load_adapters` are the only loaders: every stage, the evaluation and the Hub client resolve names
and check files through them.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from peft import PeftModel
from safetensors import SafetensorError
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from pipeline.model.adapter_files import add_adapters, merge_adapters, read_adapter_config
from pipeline.model.atomic import staged
from pipeline.model.policy import ValueHead, attach_value_head, has_value_head
from pipeline.model.reasoning import has_reasoning_layer, reject_reasoning_layer
from pipeline.model.reasoning_file import (
    attach_stored_reasoning_layer,
    save_reasoning_layer,
    split_reasoning_layer,
)
from pipeline.model.resolve import folder_or_download, resolve_checkpoint, was_converted
from pipeline.model.trust import ADAPTER_CONFIG
from pipeline.model.value_head_file import VALUE_HEAD_FILE, save_value_head, split_value_head
from pipeline.model.verifier import attach_verifier, load_verifier, save_verifier, verifier_of
from pipeline.model.vocab import add_reasoning_tokens, tokens_without_row
from pipeline.model.weights import (
    and_more,
    load_causal_lm,
    one_line_load_errors,
    read_header,
    read_tensors,
)

TOKENIZER_CONFIG = "tokenizer_config.json"


def save_policy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    state_dict: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write model and tokenizer, and value head, reasoning layer and verifier if any, as a folder.

    A checkpoint that was there is replaced atomically: a kill leaves the old or the new one.
    `state_dict` has the weights if they were gathered from several processes.

    Raises:
        ValueError: the model is a wrapper (of accelerate, PEFT, ...).
        OSError: the disk is full; the folder is unchanged.
    """
    if not isinstance(model, PreTrainedModel):
        raise ValueError(
            f"save_policy got a {type(model).__name__}, and a checkpoint holds a plain model; "
            "unwrap it first (accelerator.unwrap_model, merge_and_unload)"
        )
    plain, head = split_value_head(state_dict or model.state_dict())
    plain, reasoning = split_reasoning_layer(plain)
    try:
        with staged(Path(folder)) as staging:
            model.save_pretrained(staging, state_dict=plain)
            tokenizer.save_pretrained(staging)
            if has_value_head(model):
                save_value_head(model.value_head, staging, head or None)
            if has_reasoning_layer(model):
                save_reasoning_layer(model.reasoning_layer, staging, reasoning)
            if (verifier := verifier_of(model)) is not None:
                save_verifier(verifier, staging)
    except SafetensorError as error:  # the disk is full
        raise OSError(
            f"{folder} could not be saved: {error}; it is unchanged, so free some space and retry"
        ) from error


def load_policy(
    folder: str | Path,
    *,
    value_head: Literal["require", "optional", "new"] = "require",
    dtype: torch.dtype | None = None,
    revision: str | None = None,
    will_grow: bool = False,
    loading: Mapping[str, object] | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """(model, tokenizer) of a checkpoint, in eval mode on the CPU, adapters merged.

    Args:
        folder: a checkpoint folder, or `user/name[@revision]` on the Hub.
        value_head: "require" raises ValueError where there is none, "optional" loads it if there
            is one, "new" attaches one that returns 0 and ignores a stored one.
        dtype: of the model; None keeps the stored one. The value head stays float32.
        revision: branch, tag or commit on the Hub, if `folder` does not name it.
        will_grow: the caller adds embedding rows for tokens without one (add_reasoning_tokens);
            otherwise a tokenizer with ids beyond the embedding is refused.
        loading: further arguments of from_pretrained (`pipeline.model.loading`).

    Raises:
        OSError: there is no such checkpoint here or on the Hub.
        ValueError: weights of the model, the adapters, the value head, the reasoning layer or the
            verifier are missing, left over, of another shape or type, NaN or infinite.
    """
    if value_head not in ("require", "optional", "new"):
        raise ValueError(f"value_head={value_head!r} is not one of 'require', 'optional', 'new'")
    path = resolve_checkpoint(folder, revision)
    if (path / ADAPTER_CONFIG).exists():
        model, tokenizer = _load_adapted(path, value_head, dtype, loading=loading)
        model = merge_adapters(model).eval()
    else:
        model, tokenizer = _load_plain(path, dtype, loading or {})
        attach_stored_reasoning_layer(model, path)
        if value_head != "new":
            _attach_stored_heads(model, path)
    if not will_grow:
        _check_rows(folder, model, tokenizer)
    # TRL loads a reference model by this name, and adapters store it as that of their base model.
    known = Path(folder).expanduser().exists() or was_converted(path)
    model.name_or_path = model.config._name_or_path = (
        str(path) if known else str(folder).partition("@")[0]
    )
    if value_head == "new":
        model.value_head = None  # the base model of adapters may have one, and a verifier
        attach_verifier(model, None)
        return attach_value_head(model), tokenizer
    if value_head == "require" and not has_value_head(model):
        raise ValueError(
            f"{folder} has no {VALUE_HEAD_FILE}, and a policy needs a value head; "
            "load_policy(..., value_head='new') starts one, value_head='optional' does without"
        )
    return model, tokenizer


def load_adapters(
    folder: str | Path, base: str | None = None, *, dtype: torch.dtype | None = None
) -> tuple[PeftModel, PreTrainedTokenizerBase]:
    """(model with its adapters, not merged, tokenizer) of a folder or a repository of adapters.

    `base` is the folder or the name on the Hub of the base model, if it is no longer where
    adapter_config.json says. The base may be a folder of adapters itself: those are merged.
    `dtype` is that of the base model; None keeps the stored one.
    Raises as load_policy does.
    """
    path = resolve_checkpoint(folder)
    return _load_adapted(path, "optional", dtype, base=base, stacked=True)


def _load_plain(
    folder: Path, dtype: torch.dtype | None, loading: Mapping[str, object]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    tokenizer = _load_tokenizer(folder)
    return load_causal_lm(folder, dtype, loading), tokenizer


def _load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    with one_line_load_errors(folder, "the tokenizer"):
        return AutoTokenizer.from_pretrained(folder, padding_side="left", trust_remote_code=False)


def _check_rows(
    folder: str | Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Raise ValueError if the tokenizer has a token without a row in the embedding."""
    beyond = tokens_without_row(model, tokenizer)
    if beyond:
        token, token_id = next(iter(beyond.items()))
        rows = model.get_input_embeddings().weight.shape[0]
        raise ValueError(
            f"{folder}: the tokenizer gives {token!r} the id {token_id}{and_more(beyond)}, and the "
            f"embedding has {rows:,} rows; take the tokenizer that was saved with the model, or "
            "train it with stages.sft, which adds the rows"
        )


def _load_adapted(
    folder: Path,
    value_head: str,
    dtype: torch.dtype | None = None,
    *,
    base: str | None = None,
    stacked: bool = False,
    loading: Mapping[str, object] | None = None,
) -> tuple[PeftModel, PreTrainedTokenizerBase]:
    """(model with its adapters, tokenizer); `stacked` accepts adapters as the base model."""
    config = read_adapter_config(folder)
    name = base or config["base_model_name_or_path"]
    try:
        path = resolve_checkpoint(name, None if base else config.get("revision"))
    except OSError as error:
        raise ValueError(
            f"{folder} is an adapter on the model {name}, which is not there ({error}); put its "
            f"folder or its name on the Hub into {ADAPTER_CONFIG} as base_model_name_or_path"
        ) from error
    if not stacked and (path / ADAPTER_CONFIG).exists():
        raise ValueError(f"{folder} is an adapter on {name}, an adapter too; merge that one first")
    model, tokenizer = load_policy(
        path, value_head="optional", dtype=dtype, will_grow=True, loading=loading
    )
    reject_reasoning_layer(model, "an adapter on another model")
    add_reasoning_tokens(model, tokenizer)  # the adapters were trained on a model with these rows
    if (folder / TOKENIZER_CONFIG).is_file():  # its chat template has the prompt of the training
        tokenizer = _adapters_tokenizer(folder, name, model, tokenizer)
    if value_head != "new":
        _attach_stored_heads(model, folder)
    adapted = add_adapters(model, folder)
    if has_value_head(model):
        attach_value_head(model)  # peft may have replaced the LM head, which the value head reads
    return adapted.eval(), tokenizer


def _adapters_tokenizer(
    folder: Path, base: str, model: PreTrainedModel, base_tokenizer: PreTrainedTokenizerBase
) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder of adapters; ValueError if its vocabulary is not that of `base`.

    `base_tokenizer` has the reasoning tokens; they are added to one that lacks them, such as that
    of adapters from another trainer.
    """
    tokenizer, vocabulary = _load_tokenizer(folder), base_tokenizer.get_vocab()
    if tokenizer.get_vocab().items() <= vocabulary.items():
        add_reasoning_tokens(model, tokenizer)
    if tokenizer.get_vocab() != vocabulary:
        raise ValueError(
            f"{folder}: its tokenizer has another vocabulary than its base model {base}; name the "
            "model it was trained on as base_model_name_or_path, or remove its tokenizer files to "
            "use those of the base model"
        )
    return tokenizer


def _attach_stored_heads(model: PreTrainedModel, folder: Path) -> None:
    """Attach the value head of a folder, and with it the verifier, which reads its values."""
    head = load_value_head(folder, width=model.get_output_embeddings().weight.shape[1])
    if head is not None:
        attach_value_head(model, head)
        attach_verifier(model, load_verifier(folder))


def load_value_head(
    folder: str | Path, *, revision: str | None = None, width: int | None = None
) -> ValueHead | None:
    """The stored value head in float32, or None if the checkpoint has none.

    `width` is that of the hidden states it will read. Raises ValueError for another width, for
    shapes that contradict the metadata, and for values that are not finite.
    """
    path = folder_or_download(folder, revision) / VALUE_HEAD_FILE
    if not path.exists():
        return None
    hidden_size, hidden = _checked_shape(path)
    if width is not None and hidden_size != width:
        raise ValueError(
            f"{path} reads hidden states of width {hidden_size}, and those of the model "
            f"have {width}; take the value head that was saved with this model, or start one with "
            "value_head='new'"
        )
    head = ValueHead(hidden_size, hidden=hidden)
    head.load_state_dict(read_tensors(path))
    return head


def _checked_shape(path: Path) -> tuple[int, int | None]:
    """(hidden_size, hidden) of a stored value head, if metadata and tensor shapes agree.

    The metadata alone is not trusted: it could make the loader allocate any amount of memory.
    """
    stored, metadata = read_header(path)
    shapes = {name: tensor.shape for name, tensor in stored.items()}
    try:
        content = json.loads(metadata["value_head"])
        hidden_size, hidden = content["hidden_size"], content["hidden"]
    except (KeyError, TypeError, ValueError):
        raise ValueError(
            f"{path} has no metadata 'value_head' with hidden_size and hidden, so it is no value "
            "head; take a file written by save_policy"
        ) from None
    wanted: dict[str, tuple] = {"last.weight": (1, hidden or hidden_size), "last.bias": (1,)}
    if hidden:
        wanted |= {"inner.0.weight": (hidden, hidden_size), "inner.0.bias": (hidden,)}
    if shapes != wanted:
        name = min(n for n in shapes.keys() | wanted.keys() if shapes.get(n) != wanted.get(n))
        raise ValueError(
            f"{path}: {name} has the shape {shapes.get(name)}, and a value head of {content} has "
            f"{wanted.get(name)}; take the file that was saved with this model"
        )
    first = shapes.get("inner.0.weight", shapes["last.weight"])
    return first[1], first[0] if hidden else None
