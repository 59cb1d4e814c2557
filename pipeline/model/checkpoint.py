"""One folder in, one folder out: a plain Hugging Face checkpoint with a value head beside it.

    model.safetensors, config.json, tokenizer files   what AutoModelForCausalLM, lm-eval, vLLM read
    value_head.safetensors                            the value head; its shape is in the metadata
    critic.safetensors                                the critic of paths, where one was trained

No file holds a pickle.
"""

import json
import re
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file

from pipeline.model.critic import attach_critic, load_critic
from pipeline.model.policy import ValueHead, attach_value_head, has_value_head
from pipeline.model.staging import restore, staged

VALUE_HEAD_FILE = "value_head.safetensors"
_PREFIX = "value_head."


def save_policy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    state_dict: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write model, value head (if there is one) and tokenizer, replacing what was in `folder`.

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
        # Absolute, because "." has no name to stage beside.
        with staged(Path(folder).absolute()) as staging:
            model.save_pretrained(staging, state_dict=plain)
            tokenizer.save_pretrained(staging)
            if has_value_head(model):
                save_value_head(model.value_head, staging, head or None)
    except SafetensorError as error:  # a full disk
        raise OSError(f"{folder} could not be saved: {error}; it is as it was before") from error


def load_policy(
    folder: str | Path,
    *,
    value_head: Literal["require", "optional", "new"] = "require",
    dtype: torch.dtype | None = None,
    revision: str | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """(model, tokenizer) from a checkpoint folder or a model's name on the Hub, in eval mode.

    value_head  "require" fails without one, "optional" loads it where there is one,
                "new" attaches one that says 0 everywhere and ignores what is stored
    dtype       of the model; None keeps the stored one. The value head stays float32.
    """
    if value_head not in ("require", "optional", "new"):
        raise ValueError(f"value_head={value_head!r} is not one of 'require', 'optional', 'new'")
    folder = _find(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype or "auto", revision=revision)
    tokenizer = AutoTokenizer.from_pretrained(folder, revision=revision, padding_side="left")
    if value_head == "new":
        return attach_value_head(model), tokenizer
    head = load_value_head(folder, revision=revision)
    if head is not None:
        attach_value_head(model, head)
        attach_critic(model, load_critic(folder, revision=revision))
    elif value_head == "require":
        raise ValueError(
            f"{folder} has no {VALUE_HEAD_FILE}, and a policy needs a value head; "
            "load_policy(..., value_head='new') starts one, value_head='optional' does without"
        )
    return model, tokenizer


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
    path = cached_file(
        folder, VALUE_HEAD_FILE, revision=revision, _raise_exceptions_for_missing_entries=False
    )
    if path is None:
        return None
    with safe_open(path, framework="pt") as file:
        head = ValueHead(**json.loads(file.metadata()["value_head"]))
        head.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    return head


def _find(folder: str | Path) -> str:
    """The path of a checkpoint folder, or the name unchanged where only the Hub can be meant."""
    path = Path(folder).expanduser()
    restore(path.absolute())
    if path.exists():
        if not (path / "config.json").exists() and (path / "adapter_config.json").exists():
            raise FileNotFoundError(
                f"{folder} holds adapters and no model; merge them first: "
                f"python -m stages.merge --adapter {folder} --output_dir DIR"
            )
        if not (path / "config.json").exists():
            raise FileNotFoundError(
                f"{folder} has no config.json, so it is no checkpoint folder; "
                "point at a folder written by save_policy"
            )
        return str(path)
    on_hub = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(folder)) and not str(folder).startswith(".")
    # "runs/nano" could be both; next to a folder "runs" it is a path.
    if not on_hub or ("/" in str(folder) and path.parent.exists()):
        raise FileNotFoundError(
            f"{folder} does not exist; point at a checkpoint folder or name a model on the Hub"
        )
    return str(folder)
