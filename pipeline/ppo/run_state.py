"""What a checkpoint has of its rollouts: a half-used batch, held back gradients, stored groups."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from pipeline.ppo.delayed_update import DelayedUpdate
from pipeline.ppo.ema import WeightsEMA
from pipeline.ppo.minibatches import Batch
from pipeline.ppo.replay import ReplayBuffer

EMA_FILE = "ema.safetensors"  # of a checkpoint-N: the average of the weights


def save_average(folder: Path, ema: WeightsEMA) -> None:
    """Write the average of the weights into the folder of a checkpoint."""
    save_file(ema.state_dict(), folder / EMA_FILE)


def load_average(folder: Path, ema: WeightsEMA) -> None:
    """Read what `save_average` wrote."""
    ema.load_state_dict(load_file(folder / EMA_FILE))


def save_rollout(folder: Path, process: int, batch: Batch) -> None:
    """Write the training batch of the current rollout of a process."""
    tensors = {name: value.contiguous() for name, value in batch.items()}
    save_file(tensors, _file(folder, "rollout", process))


def load_rollout(folder: Path, process: int, processes: int, device: torch.device) -> Batch:
    """Read what `save_rollout` wrote.

    Raises:
        ValueError: the checkpoint was saved by another number of processes.
    """
    path = _file(folder, "rollout", process)
    saved = len(list(folder.glob("rollout-*.safetensors")))
    if saved != processes or not path.is_file():
        raise ValueError(
            f"{folder} was saved in the middle of a rollout, with processes={saved}, and this run "
            f"has processes={processes}; resume with as many, or from a checkpoint between two "
            "rollouts"
        )
    return {name: x.to(device) for name, x in load_file(path).items()}


def save_delayed(folder: Path, process: int, delayed: DelayedUpdate | None) -> None:
    """Write the gradients that are held back, if there are any."""
    state: Mapping[str, torch.Tensor] = delayed.state_dict() if delayed is not None else {}
    if state:
        save_file(dict(state), _file(folder, "delayed", process))


def load_delayed(folder: Path, process: int, delayed: DelayedUpdate | None, index: int) -> None:
    """Read what `save_delayed` wrote; `index` is the number of the next optimizer step."""
    path = _file(folder, "delayed", process)
    if delayed is not None and path.is_file():
        delayed.load_state_dict(load_file(path), index)


def save_replay(folder: Path, process: int, replay: ReplayBuffer | None) -> None:
    """Write the groups that a process keeps of earlier rollouts, if it keeps any."""
    if replay is not None:
        replay.save(_file(folder, "replay", process))


def load_replay(folder: Path, process: int, replay: ReplayBuffer | None) -> None:
    """Read what `save_replay` wrote; a process that was not there starts without groups."""
    path = _file(folder, "replay", process)
    if replay is not None and path.is_file():
        replay.load(path)


def _file(folder: Path, name: str, process: int) -> Path:
    return folder / f"{name}-{process}.safetensors"
