"""Write the value head: its own file beside a plain Hugging Face folder."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from pipeline.model.policy import ValueHead
from pipeline.model.weights import split_by_prefix

VALUE_HEAD_FILE = "value_head.safetensors"
PREFIX = "value_head."


def split_value_head(
    state_dict: dict[str, torch.Tensor],
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """(weights of the plain model, weights of the value head), the latter without their prefix.

    >>> split_value_head({"lm_head.weight": 1, "value_head.last.bias": 2})
    ({'lm_head.weight': 1}, {'last.bias': 2})
    """
    return split_by_prefix(state_dict, PREFIX)


def save_value_head(
    head: ValueHead, folder: str | Path, state_dict: dict[str, torch.Tensor] | None = None
) -> None:
    """Write VALUE_HEAD_FILE; `state_dict` has the weights if they were gathered from ranks."""
    state_dict = head.state_dict() if state_dict is None else state_dict
    shape = {"hidden_size": head.hidden_size, "hidden": head.hidden}
    save_file(
        {name: weight.contiguous() for name, weight in state_dict.items()},
        Path(folder) / VALUE_HEAD_FILE,
        # One entry: the order in which safetensors writes several differs between processes.
        metadata={"value_head": json.dumps(shape, sort_keys=True)},
    )
