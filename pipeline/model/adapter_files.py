"""Add the LoRA adapters of a folder to a model, after checking that they fit it.

peft at most warns about adapters of another model, and allocates memory for any configured rank.
"""

import json
import warnings
from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model_state_dict
from transformers import PreTrainedModel

from pipeline.model.policy import attach_value_head, has_value_head
from pipeline.model.trust import ADAPTER_CONFIG
from pipeline.model.weights import Stored, one_line_load_errors, read_header, read_tensors

ADAPTER_FILE = "adapter_model.safetensors"
# The kind that this project trains; the header of its file gives its size.
KIND = "LORA"
AdapterConfig = dict[str, Any]  # the content of ADAPTER_CONFIG


def read_adapter_config(folder: Path) -> AdapterConfig:
    """The content of ADAPTER_CONFIG; ValueError unless it describes LoRA adapters."""
    path = folder / ADAPTER_CONFIG
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} has no {ADAPTER_CONFIG}, so it holds no adapter; give the adapter/ or "
            "checkpoint-N folder of a run with --use_peft true"
        )
    config = json.loads(path.read_text(encoding="utf-8"))
    kind = config.get("peft_type")
    if kind != KIND:
        raise ValueError(
            f"{path} has peft_type={kind}, and only {KIND} can be merged here; merge it with peft "
            "and save the whole model"
        )
    base = config.get("base_model_name_or_path")
    if not isinstance(base, str):
        raise ValueError(
            f"{path} has base_model_name_or_path={base!r}; set it to the folder or the name on the "
            "Hub of the base model"
        )
    return config


def add_adapters(model: PreTrainedModel, folder: Path) -> PeftModel:
    """The model with the adapters of the folder, not merged.

    Raises ValueError if ranks, names or shapes do not fit the model, or a weight is not finite.
    """
    config = read_adapter_config(folder)
    path = folder / ADAPTER_FILE
    if not path.is_file():
        raise ValueError(f"{folder} has no {ADAPTER_FILE}; save the adapters as safetensors")
    stored, _ = read_header(path)
    _check_ranks(path, config, stored)
    read_tensors(path)
    with one_line_load_errors(folder, "the adapter"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about missing keys, which raise below
        adapted = PeftModel.from_pretrained(model, folder)
    own = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    # peft may have stored the embedding and the LM head along with the adapters.
    known = set(adapted.state_dict())
    _check_names(path, own, set(stored), known, config)
    return adapted


def merge_adapters(model: PeftModel) -> PreTrainedModel:
    """The plain model with the adapters added to its weights, its value head kept.

    `model` must not be used afterwards: its weights are changed in place.
    """
    plain = model.merge_and_unload()
    if has_value_head(plain):
        attach_value_head(plain)  # peft has replaced the LM head, which the value head reads
    return plain


def _check_ranks(path: Path, config: AdapterConfig, stored: dict[str, Stored]) -> None:
    """Raise ValueError if the configuration has a larger rank than every tensor of the file."""
    ranks = {t.shape[0] for n, t in stored.items() if "lora_A" in n or "lora_embedding_A" in n}
    wanted = [config.get("r"), *(config.get("rank_pattern") or {}).values()]
    if not ranks:
        first = min(stored, default="nothing")
        raise ValueError(
            f"{path} holds no LoRA weights ({first}, {len(stored):,} tensors); take the file that "
            f"was saved with its {ADAPTER_CONFIG}"
        )
    for rank in wanted:
        if not isinstance(rank, int) or not 1 <= rank <= max(ranks):
            raise ValueError(
                f"{path.with_name(ADAPTER_CONFIG)} has the rank {rank!r}, and the weights have "
                f"{', '.join(map(str, sorted(ranks)))}; take the file that was saved with them"
            )


def _check_names(
    path: Path, own: set[str], stored: set[str], known: set[str], config: AdapterConfig
) -> None:
    """Raise ValueError unless the file has the adapters' weights `own` and only `known` others."""
    missing, foreign = sorted(own - stored), sorted(stored - own - known)
    if missing or foreign:
        wrong = f"{foreign[0]} has no place in it" if foreign else f"{missing[0]} is missing"
        raise ValueError(
            f"{path} does not fit the model {config['base_model_name_or_path']}: {wrong} "
            f"({len(missing):,} missing, {len(foreign):,} left over); name the model it was "
            "trained on as base_model_name_or_path"
        )
