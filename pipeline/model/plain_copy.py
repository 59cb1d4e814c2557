"""A plain folder with the model of a sharded checkpoint, made once.

    ~/.cache/thinkhead/sharded-HASH/    or $THINKHEAD_CACHE; HASH is that of the manifest

Weights, adapters and value head are gathered by one process, in its memory. A folder is renamed to
its name when it is complete: an interrupted conversion leaves none.
"""

import hashlib
import shutil
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import save_file

from pipeline.folder_lock import one_at_a_time
from pipeline.model.atomic import MANIFEST, check_manifest, staged
from pipeline.model.gguf import cache_folder
from pipeline.model.policy import ValueHead
from pipeline.model.shards import MODEL_SHARDS, read_shards, stored_shapes
from pipeline.model.trust import ADAPTER_CONFIG, is_checkpoint_file
from pipeline.model.value_head_file import save_value_head, split_value_head

ADAPTER_FILE = "adapter_model.safetensors"


def plain_copy(folder: Path) -> Path:
    """Return the folder with the plain model of a sharded checkpoint, converted if it is not yet.

    Processes that convert at the same time do so one after the other.

    Raises:
        DamagedCheckpointError: a file is missing or changed since it was saved.
        ValueError: a file is damaged.
    """
    check_manifest(folder)
    digest = hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
    target = cache_folder() / f"sharded-{digest[:16]}"
    with one_at_a_time(target.with_name(f".{target.name}.lock")):
        if not target.is_dir():
            print(f"gathering the weights of {folder}, once, in {target}")
            write_plain(folder, target)
    return target


def write_plain(folder: Path, target: Path) -> None:
    """Write the model of the sharded checkpoint `folder` as the plain folder `target`."""
    shapes = stored_shapes(folder / MODEL_SHARDS)
    tensors = {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in shapes.items()}
    read_shards(tensors, folder / MODEL_SHARDS)
    plain, head = split_value_head(tensors)
    with staged(target) as staging:
        for path in folder.iterdir():
            if path.is_file() and is_checkpoint_file(path.name):
                shutil.copyfile(path, staging / path.name)
        if (folder / ADAPTER_CONFIG).exists():
            save_file(plain, staging / ADAPTER_FILE, metadata={"format": "pt"})
        else:
            save_torch_state_dict(plain, staging)
        if head:
            save_value_head(_shape_of(head), staging, head)


def _shape_of(head: dict[str, torch.Tensor]) -> ValueHead:
    """Return a value head without memory that has the shape of these weights."""
    hidden = head["inner.0.weight"].shape[0] if "inner.0.weight" in head else None
    width = head["inner.0.weight" if hidden else "last.weight"].shape[1]
    with torch.device("meta"):
        return ValueHead(width, hidden=hidden)
