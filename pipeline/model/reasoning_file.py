"""Save and load the reasoning layer: one file beside a plain Hugging Face folder.

transformers does not read the file: there the folder is the policy without its reasoning layer.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel

from pipeline.model.reasoning import ReasoningLayer, attach_reasoning_layer, new_reasoning_layer
from pipeline.model.weights import read_header, read_tensors, split_by_prefix

REASONING_FILE = "reasoning_layer.safetensors"
_PREFIX = "reasoning_layer."
_KEY = "reasoning_layer"


def split_reasoning_layer(
    state_dict: dict[str, torch.Tensor],
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """(the other weights, weights of the reasoning layer), the latter without their prefix.

    >>> split_reasoning_layer({"lm_head.weight": 1, "reasoning_layer.norm.weight": 2})
    ({'lm_head.weight': 1}, {'norm.weight': 2})
    """
    return split_by_prefix(state_dict, _PREFIX)


def save_reasoning_layer(
    layer: ReasoningLayer, folder: str | Path, state_dict: dict[str, torch.Tensor] | None = None
) -> None:
    """Write REASONING_FILE; `state_dict` has the weights if they were gathered from ranks."""
    state_dict = state_dict or layer.state_dict()
    ids = {"think_id": layer.think_id, "end_think_id": layer.end_think_id}
    save_file(
        {name: weight.contiguous() for name, weight in state_dict.items()},
        Path(folder) / REASONING_FILE,
        metadata={_KEY: json.dumps({**ids, "tied": layer.head is None}, sort_keys=True)},
    )


def attach_stored_reasoning_layer(model: PreTrainedModel, folder: Path) -> bool:
    """Attach the reasoning layer of a folder in the model's dtype; False if there is none.

    Raises ValueError for a file that does not fit the model, and for values that are not finite.
    """
    path = folder / REASONING_FILE
    if not path.exists():
        return False
    think_id, end_think_id, tied = _metadata(path)
    layer = new_reasoning_layer(model, think_id=think_id, end_think_id=end_think_id, tied=tied)
    load_reasoning_weights(layer, path)
    attach_reasoning_layer(model, layer)
    return True


def load_reasoning_weights(layer: ReasoningLayer, path: Path) -> None:
    """Load the weights of a file into the layer; ValueError for other names or shapes."""
    wanted = {name: tuple(weight.shape) for name, weight in layer.state_dict().items()}
    found = {name: stored.shape for name, stored in read_header(path)[0].items()}
    if found != wanted:
        name = min(n for n in found.keys() | wanted.keys() if found.get(n) != wanted.get(n))
        raise ValueError(
            f"{path}: {name} has the shape {found.get(name)}, and a reasoning layer of this model "
            f"has {wanted.get(name)}; take the file that was saved with this model"
        )
    layer.load_state_dict(read_tensors(path))


def _metadata(path: Path) -> tuple[int, int, bool]:
    """(think_id, end_think_id, tied) of a file."""
    try:
        content = json.loads(read_header(path)[1][_KEY])
        return int(content["think_id"]), int(content["end_think_id"]), bool(content["tied"])
    except (KeyError, TypeError, ValueError):
        raise ValueError(
            f"{path} has no metadata {_KEY!r} with think_id, end_think_id and tied, so it is no "
            "reasoning layer; take a file written by save_policy"
        ) from None
