"""Atomic checkpoint folders: a manifest with SHA-256 hashes, staging, and renames.

manifest.json is written last. It lists every file with its size and hash, and has a hash of itself.
A folder without a manifest was not finished, or was not written by this project.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from torch import nn

from pipeline.folder_lock import keep_lock

MANIFEST = "manifest.json"
_CHUNK = 1 << 22  # bytes read at a time
FileHashes = dict[str, dict[str, int | str]]  # {path: {"bytes": size, "sha256": digest}}


class DamagedCheckpointError(ValueError):
    """A checkpoint that is incomplete or changed since it was saved."""


def hash_files(folder: Path, paths: Iterable[Path]) -> FileHashes:
    """Return size and SHA-256 of files below `folder`, by their path in it."""
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        for path in paths
    }


def write_manifest(folder: Path, hashed: FileHashes | None = None, **facts: object) -> None:
    """Write MANIFEST with the size and SHA-256 of every file below `folder`.

    Args:
        folder: of a checkpoint that is complete but for MANIFEST.
        hashed: `hash_files` of other processes, of the files that they have written.
        facts: stored with it: the step, the number of processes and the like, as JSON.

    Raises:
        OSError: a file of another process is not in the folder.
    """
    files = dict(hashed or {})
    missing = [name for name in files if not (folder / name).is_file()]
    if missing:
        raise OSError(
            f"{missing[0]}, which another process has written, is not in {folder}; give an "
            "--output_dir that all machines share"
        )
    found = [path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST]
    files |= hash_files(folder, [p for p in found if p.relative_to(folder).as_posix() not in files])
    files = dict(sorted(files.items()))
    content = {"facts": facts, "files": files}
    signed = content | {"sha256": _content_hash(content)}
    (folder / MANIFEST).write_text(json.dumps(signed, indent=1) + "\n", encoding="utf-8")


def check_manifest(folder: Path) -> dict[str, Any]:
    """The facts of a checkpoint, after checking size and hash of all its files.

    Files that are not in the manifest are no part of the checkpoint and are ignored. Raises
    DamagedCheckpointError for the first file that is missing or changed.
    """
    content = _read(folder)
    for name, expected in content["files"].items():
        inside = PurePosixPath(name)
        if inside.is_absolute() or ".." in inside.parts:
            raise _damaged(folder, f"its manifest names {name}, which lies outside of it")
        path = folder / name
        if not path.is_file():
            raise _damaged(folder, f"{name} is missing")
        size = path.stat().st_size
        if size != expected["bytes"]:
            raise _damaged(folder, f"{name} has {size:,} bytes instead of {expected['bytes']:,}")
        if _sha256(path) != expected["sha256"]:
            raise _damaged(folder, f"{name} does not have the SHA-256 it was saved with")
    return content["facts"]


def checkpoints(output_dir: Path) -> list[Path]:
    """The folders checkpoint-N of a run, newest first, intact or not."""
    if not output_dir.is_dir():
        return []
    steps = {
        path: int(found[1])
        for path in output_dir.iterdir()
        if (found := re.fullmatch(r"checkpoint-(\d+)", path.name)) and path.is_dir()
    }
    return sorted(steps, key=steps.__getitem__, reverse=True)


def newest_intact(output_dir: Path) -> tuple[Path | None, list[str]]:
    """(the newest intact checkpoint-N or None, the error of each newer one)."""
    complaints = []
    for folder in checkpoints(output_dir):
        try:
            check_manifest(folder)
        except DamagedCheckpointError as error:
            complaints.append(str(error))
            continue
        return folder, complaints
    return None, complaints


def _read(folder: Path) -> dict[str, dict]:
    path = folder / MANIFEST
    if not path.is_file():
        raise _damaged(folder, f"it has no {MANIFEST}, which is written last")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        right = content.pop("sha256") == _content_hash(content)
    except (ValueError, KeyError, TypeError, AttributeError):
        right = False
    if not right:
        raise _damaged(folder, f"its {MANIFEST} has changed since it was written")
    return content


def _damaged(folder: Path, reason: str) -> DamagedCheckpointError:
    return DamagedCheckpointError(
        f"{folder} is damaged: {reason}; resume from another checkpoint, or give "
        "resume_from_checkpoint=last for the newest intact one"
    )


def _content_hash(content: Mapping[str, object]) -> str:
    plain = {name: content[name] for name in ("facts", "files")}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    for chunk in _chunks(path):
        digest.update(chunk)
    return digest.hexdigest()


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk


# Files of a checkpoint, which a new one replaces; other files in the folder are kept.
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
    """An empty folder to write into, which replaces `folder` at the end of the context.

    It is .NAME.staging beside `folder`, and is flushed to the disk before it is renamed. Files in
    `folder` that are no part of a checkpoint (logs, further checkpoints) are moved to the new one.
    After an exception `folder` is unchanged. A symbolic link to a folder stays a link.
    """
    folder = folder.resolve()  # "." has no name to derive that of the staging folder from
    restore(folder)
    staging = _sibling(folder, "staging")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        yield staging
        sync(staging)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    if folder.exists():
        keep_lock(folder, staging)
        folder.rename(_sibling(folder, "old"))
    staging.rename(folder)
    _sync_path(folder.parent)
    restore(folder)


def replace_folder(made: Path, folder: Path) -> None:
    """Flush the complete folder `made` to the disk and rename it to `folder`, replacing that.

    If `folder` is a symbolic link, only the link is removed.
    """
    sync(made)
    old = _sibling(folder, "old")
    _remove(old)
    if folder.exists() or folder.is_symlink():
        folder.rename(old)
    made.rename(folder)
    _sync_path(folder.parent)
    _remove(old)


def restore(folder: Path) -> None:
    """Finish a replacement that was killed between two renames; otherwise do nothing.

    .NAME.old exists only if the new folder is complete. If `folder` is missing, the old folder is
    renamed back; if it is there, the files that are no part of a checkpoint are moved to it.
    """
    folder = folder.resolve()
    old = _sibling(folder, "old")
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


def _sibling(folder: Path, suffix: str) -> Path:
    return folder.with_name(f".{folder.name}.{suffix}")


def sync(folder: Path) -> None:
    """Flush everything below `folder` to the disk (fsync)."""
    for path in folder.rglob("*"):
        _sync_path(path)
    _sync_path(folder)


def _sync_path(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def weights_fingerprint(model: nn.Module, *, value_head: bool = True) -> str:
    """16 hex digits: a hash of name, shape, dtype and first 64 values of every tensor.

    Every training step changes some of these values. Samples depend on no `value_head`.
    """
    weights = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if not value_head and name.startswith("value_head."):
            continue
        weights.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        weights.update(str(tensor.flatten()[:64].tolist()).encode())
    return weights.hexdigest()[:16]
