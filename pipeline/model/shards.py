"""Tensors divided among processes (FSDP2), in files that each process writes and reads by itself.

    FOLDER/shard-0000R-model-0000F-of-0000N.safetensors    what process R - 1 held

The files are those of `torch.distributed.checkpoint` in safetensors: none is a pickle, and the
header has the offset of every piece. Any number of processes can read them.
"""

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.tensor import DTensor

MODEL_SHARDS = "sharded_model"  # folder of a checkpoint-N
# A process holds a whole file, twice, in memory while it writes it.
FILE_BYTES = 512 << 20


def is_sharded_checkpoint(folder: str | Path) -> bool:
    """Return whether the weights of a checkpoint are in shards (MODEL_SHARDS)."""
    return (Path(folder) / MODEL_SHARDS).is_dir()


def write_shards(tensors: Mapping[str, torch.Tensor], folder: Path, processes: int) -> None:
    """Write what this process holds of every tensor; all `processes` must call it together.

    A DTensor is written by the processes that hold its pieces, any other tensor by one of them.

    Raises:
        OSError: a process could not write, for example because the disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    writer = dcp.HuggingFaceStorageWriter(
        str(folder),
        fqn_to_index_mapping=_file_of(tensors, FILE_BYTES * processes),
        save_distributed=True,
    )
    try:
        with _without_warnings():
            dcp.save(dict(tensors), storage_writer=writer)
    except CheckpointException as error:  # of any process, raised by all
        raise OSError(_first_reason(error)) from error


def own_shards(folder: Path, process: int) -> list[Path]:
    """Return the files that `process`, counted from 0, has written."""
    return sorted(folder.glob(f"shard-{process + 1:05d}-*.safetensors"))


def stored_shapes(folder: Path) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Return {name: (shape, dtype)} of the whole tensors.

    Raises:
        ValueError: a file is damaged, or the pieces of a tensor do not add up to it.
    """
    try:
        stored = dcp.HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{folder} is damaged ({reason}); take another checkpoint") from error
    found = {}
    for name, tensor in stored.items():
        assert isinstance(tensor, dcp.TensorStorageMetadata)
        if sum(math.prod(chunk.sizes) for chunk in tensor.chunks) != math.prod(tensor.size):
            raise ValueError(
                f"{folder} lacks pieces of {name}, whose shape is {tuple(tensor.size)}; copy the "
                "files of all processes, or take another checkpoint"
            )
        found[name] = (tensor.size, tensor.properties.dtype)
    return found


def read_shards(tensors: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Read the tensors in place: of a DTensor this process's part, otherwise the whole.

    The processes that hold a DTensor must call it together.

    Raises:
        ValueError: a tensor is missing or has another shape, or a file cannot be read.
    """
    stored = stored_shapes(folder)
    for name, tensor in tensors.items():
        if name not in stored or stored[name][0] != tensor.shape:
            held = f"has the shape {tuple(stored[name][0])}" if name in stored else "is missing"
            raise ValueError(
                f"{name} {held} in {folder}, and this run has {tuple(tensor.shape)}; resume with "
                "the model it was saved with"
            )
    alone = not any(isinstance(tensor, DTensor) for tensor in tensors.values())
    try:
        with _without_warnings():
            dcp.load(
                dict(tensors),
                storage_reader=dcp.HuggingFaceStorageReader(str(folder)),
                no_dist=alone,
            )
    except CheckpointException as error:
        raise ValueError(f"{folder} cannot be read: {_first_reason(error)}") from error


def _file_of(tensors: Mapping[str, torch.Tensor], limit: int) -> dict[str, int]:
    """Return the number of the file of every tensor, from 1; a file has at most `limit` bytes of
    all processes, or one tensor."""
    files, number, held = {}, 1, 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.dtype.itemsize
        if held and held + size > limit:
            number, held = number + 1, 0
        files[name], held = number, held + size
    return files


def _first_reason(error: CheckpointException) -> str:
    failure = next(iter(error.failures.values()))
    return " ".join(str(failure[0]).split())


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Hide that torch.distributed is not used, where one process reads or writes for itself."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield
