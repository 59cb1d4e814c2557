"""One folder in, one folder out: a plain Hugging Face checkpoint with a value head beside it.

    model.safetensors, config.json, tokenizer files   what AutoModelForCausalLM, lm-eval, vLLM read
    value_head.safetensors                            the value head; its shape is in the metadata
    verifier.safetensors                                the verifier, where one was trained

A folder of adapters (adapter_config.json) is one as well: it loads as its base model with the
adapters added. No file holds a pickle.
"""

import json
from pathlib import Path
from typing import Literal

import torch
from peft import PeftModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from pipeline.model.atomic import staged
from pipeline.model.policy import ValueHead, attach_value_head, has_value_head
from pipeline.model.resolve import resolve_checkpoint
from pipeline.model.trust import ADAPTER_CONFIG
from pipeline.model.verifier import attach_verifier, load_verifier, save_verifier, verifier_of
from pipeline.model.vocab import add_reasoning_tokens

VALUE_HEAD_FILE = "value_head.safetensors"
_PREFIX = "value_head."


def save_policy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    state_dict: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write model, value head and verifier (if there are any) and tokenizer, replacing what
    was in `folder`.

    `state_dict` where the weights had to be gathered from many processes. A kill at any moment
    leaves the old checkpoint or the new one.
    """
    if not isinstance(model, PreTrainedModel):
        raise ValueError(
            f"save_policy got a {type(model).__name__}, and a checkpoint holds a plain model; "
            "unwrap it first (accelerator.unwrap_model, merge_and_unload)"
        )
    plain, head = split_value_head(state_dict or model.state_dict())
    try:
        with staged(Path(folder)) as staging:
            model.save_pretrained(staging, state_dict=plain)
            tokenizer.save_pretrained(staging)
            if has_value_head(model):
                save_value_head(model.value_head, staging, head or None)
            if verifier_of(model) is not None:
                save_verifier(verifier_of(model), staging)
    except SafetensorError as error:  # a full disk
        raise OSError(f"{folder} could not be saved: {error}; it is as it was before") from error


def load_policy(
    folder: str | Path,
    *,
    value_head: Literal["require", "optional", "new"] = "require",
    dtype: torch.dtype | None = None,
    revision: str | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """(model, tokenizer) from a checkpoint folder or from `user/name[@revision]` on the Hub, in
    eval mode; adapters are merged into the model beneath them.

    value_head  "require" fails without one, "optional" loads it where there is one,
                "new" attaches one that says 0 everywhere and ignores what is stored
    dtype       of the model; None keeps the stored one. The value head stays float32.
    """
    if value_head not in ("require", "optional", "new"):
        raise ValueError(f"value_head={value_head!r} is not one of 'require', 'optional', 'new'")
    path = resolve_checkpoint(folder, revision)
    load = _load_adapted if (path / ADAPTER_CONFIG).exists() else _load_plain
    model, tokenizer = load(path, dtype)
    # By this name a reference model is loaded, and adapters remember what they stand on.
    known = Path(folder).expanduser().exists()
    model.name_or_path = model.config._name_or_path = (
        str(path) if known else str(folder).partition("@")[0]
    )
    if value_head == "new":
        model.value_head = None  # that of a base model beneath adapters
        return attach_value_head(model), tokenizer
    head = load_value_head(path)
    if head is not None:
        attach_value_head(model, head)
        attach_verifier(model, load_verifier(path))
    elif value_head == "require" and not has_value_head(model):
        raise ValueError(
            f"{folder} has no {VALUE_HEAD_FILE}, and a policy needs a value head; "
            "load_policy(..., value_head='new') starts one, value_head='optional' does without"
        )
    return model, tokenizer


def _load_plain(
    folder: Path, dtype: torch.dtype | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left", trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype or "auto", trust_remote_code=False, use_safetensors=True
    )
    return model, tokenizer


def _load_adapted(
    folder: Path, dtype: torch.dtype | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The base model with the adapters of the folder added into its weights."""
    about = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    name = str(about.get("base_model_name_or_path"))
    try:
        base = resolve_checkpoint(name, about.get("revision"))
    except OSError as error:
        raise ValueError(
            f"{folder} is an adapter on the model {name}, which is not there ({error}); put its "
            f"folder or its name on the Hub into {ADAPTER_CONFIG} as base_model_name_or_path"
        ) from error
    if (base / ADAPTER_CONFIG).exists():
        raise ValueError(f"{folder} is an adapter on {name}, an adapter too; merge that one first")
    model, tokenizer = load_policy(base, value_head="optional", dtype=dtype)
    add_reasoning_tokens(model, tokenizer)  # as the training began; nothing where they are there
    merged = PeftModel.from_pretrained(model, folder).merge_and_unload()
    if has_value_head(merged):
        attach_value_head(merged)  # peft put its own module in the place of the LM head
    return merged.eval(), tokenizer


def split_value_head(
    state_dict: dict[str, torch.Tensor],
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """(weights of the plain model, weights of the value head), the latter without their prefix.

    >>> split_value_head({"lm_head.weight": 1, "value_head.last.bias": 2})
    ({'lm_head.weight': 1}, {'last.bias': 2})
    """
    plain = {k: v for k, v in state_dict.items() if not k.startswith(_PREFIX)}
    head = {k.removeprefix(_PREFIX): v for k, v in state_dict.items() if k.startswith(_PREFIX)}
    return plain, head


def save_value_head(
    head: ValueHead, folder: str | Path, state_dict: dict[str, torch.Tensor] | None = None
) -> None:
    """Write VALUE_HEAD_FILE; `state_dict` where the weights had to be gathered from many ranks."""
    state_dict = head.state_dict() if state_dict is None else state_dict
    shape = {"hidden_size": head.hidden_size, "hidden": head.hidden}
    save_file(
        {name: weight.contiguous() for name, weight in state_dict.items()},
        Path(folder) / VALUE_HEAD_FILE,
        metadata={"format": "pt", "value_head": json.dumps(shape)},
    )


def load_value_head(folder: str | Path, *, revision: str | None = None) -> ValueHead | None:
    """The stored value head in float32, or None where the checkpoint has none."""
    found = Path(folder) if Path(folder).is_dir() else resolve_checkpoint(folder, revision)
    path = found / VALUE_HEAD_FILE
    if not path.exists():
        return None
    with safe_open(path, framework="pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        shape = json.loads((file.metadata() or {}).get("value_head", "{}"))
    # A width that is not that of the weights could ask for any amount of memory.
    first = weights.get("inner.0.weight", weights.get("last.weight"))
    if first is None or shape != {
        "hidden_size": first.shape[1],
        "hidden": first.shape[0] if "inner.0.weight" in weights else None,
    }:
        raise ValueError(f"{path} is no value head, or one of another shape than it says")
    head = ValueHead(**shape)
    head.load_state_dict(weights)
    return head
