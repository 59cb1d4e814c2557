"""Weights that a resumed run reads from a checkpoint: errors where they are not those it has."""

from collections.abc import Collection
from pathlib import Path
from typing import Protocol

from torch import nn

from pipeline.model import REASONING_FILE, load_reasoning_weights, load_value_head


class LoadResult(Protocol):
    """What load_state_dict returns."""

    missing_keys: list[str]
    unexpected_keys: list[str]


def load_own_head(policy: nn.Module, folder: str | Path) -> None:
    """Load the weights of the policy's value head from a checkpoint.

    Raises:
        ValueError: the checkpoint has none, or one of another shape.
    """
    head = load_value_head(folder)
    if head is None:
        raise ValueError(
            f"{folder} has no value head, and the model of this run has one; "
            "resume from a checkpoint of the same run"
        )
    own = policy.value_head
    if (head.hidden_size, head.hidden) != (own.hidden_size, own.hidden):
        raise ValueError(
            f"{folder} has a value head of width {head.hidden_size} and hidden="
            f"{head.hidden}, and this run one of {own.hidden_size} and {own.hidden}; resume "
            "from a checkpoint of the same run"
        )
    own.load_state_dict(head.state_dict())


def load_own_reasoning_layer(policy: nn.Module, folder: str | Path) -> None:
    """Load the weights of the policy's reasoning layer from a checkpoint.

    Raises:
        ValueError: the checkpoint has none.
    """
    path = Path(folder) / REASONING_FILE
    if not path.exists():
        raise ValueError(
            f"{folder} has no {REASONING_FILE}, and the model of this run has a reasoning layer; "
            "resume from a checkpoint of the same run"
        )
    load_reasoning_weights(policy.reasoning_layer, path)


def require_all_loaded(result: LoadResult, tied: Collection[str]) -> None:
    """Raise ValueError for missing or unexpected weights, which would keep their initial values.

    Value head and reasoning layer are not counted, as they have their own files, nor are the
    `tied` weights: all are taken out of the missing keys of `result`.
    """
    result.missing_keys[:] = [
        key
        for key in result.missing_keys
        if key not in tied and not key.startswith(("value_head.", "reasoning_layer."))
    ]
    wrong = [*result.missing_keys, *result.unexpected_keys]
    if wrong:
        raise ValueError(
            f"the checkpoint and the model of this run differ in {len(wrong):,} weights, the "
            f"first {wrong[0]}; resume with the model it was saved with"
        )
