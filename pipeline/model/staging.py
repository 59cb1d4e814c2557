"""A folder that appears whole or not at all, also when the process is killed while writing it."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# What belongs to a checkpoint and is replaced with it; everything else in the folder stays.
OWNED = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "*special_tokens*",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "chat_template*",
    "additional_chat_templates",
)


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """An empty folder to write into, which takes the place of `folder` at the end.

    It is written beside it, as .NAME.staging, and reaches the disk before it is renamed. Files in
    `folder` that are no part of a checkpoint (logs, further checkpoints) move over to the new one.
    After an exception `folder` is as it was. A link to a folder stays a link.
    """
    folder = folder.resolve()  # "." has no name to stage beside
    restore(folder)
    staging = _beside(folder, "staging")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        yield staging
        sync(staging)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    if folder.exists():
        folder.rename(_beside(folder, "old"))
    staging.rename(folder)
    _sync_path(folder.parent)
    restore(folder)


def put(made: Path, folder: Path) -> None:
    """Rename a complete folder `made` to `folder` once it is on the disk; what was there goes, of
    a link the link alone."""
    sync(made)
    old = _beside(folder, "old")
    _remove(old)
    if folder.exists() or folder.is_symlink():
        folder.rename(old)
    made.rename(folder)
    _sync_path(folder.parent)
    _remove(old)


def restore(folder: Path) -> None:
    """Finish what a kill interrupted between two renames; does nothing otherwise.

    .NAME.old exists only once the new folder is complete. Without a new folder in place the old one
    comes back; with one, its last step is left: to take over the foreign files.
    """
    folder = folder.resolve()
    old = _beside(folder, "old")
    if not old.exists():
        return
    if not folder.exists():
        old.rename(folder)
        return
    for entry in old.iterdir():
        owned = any(entry.match(pattern) for pattern in OWNED)
        if not owned and not (folder / entry.name).exists():
            entry.rename(folder / entry.name)
    shutil.rmtree(old)


def _remove(folder: Path) -> None:
    if folder.is_symlink():
        folder.unlink()
    shutil.rmtree(folder, ignore_errors=True)


def _beside(folder: Path, suffix: str) -> Path:
    return folder.with_name(f".{folder.name}.{suffix}")


def sync(folder: Path) -> None:
    """Everything below `folder` has reached the disk."""
    for path in folder.rglob("*"):
        _sync_path(path)
    _sync_path(folder)


def _sync_path(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
