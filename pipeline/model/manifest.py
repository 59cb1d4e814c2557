"""What a checkpoint folder consists of, by SHA-256, so that a damaged one is never taken for whole.

manifest.json is written last, names every file with its size and hash, and carries a hash of
itself. A folder without one was not finished, or was not written by us.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

MANIFEST = "manifest.json"
_CHUNK = 1 << 22  # bytes read at a time


class DamagedCheckpointError(ValueError):
    """A checkpoint that must not be loaded, in one line."""


def write_manifest(folder: Path, **facts: Any) -> None:
    """Write MANIFEST with the size and SHA-256 of every file below `folder`, and what else is to be
    known of it, such as the step and the number of processes."""
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / MANIFEST
    }
    content = {"facts": facts, "files": files}
    content["sha256"] = _of_content(content)
    (folder / MANIFEST).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def check_manifest(folder: Path) -> dict[str, Any]:
    """The facts of a checkpoint, once each of its files has been found whole.

    DamagedCheckpointError names the first that is not. Files that the manifest does not know are no
    part of the checkpoint and are not looked at.
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
    """The folders checkpoint-N of a run, newest first, whole or not."""
    if not output_dir.is_dir():
        return []
    steps = {
        path: int(found[1])
        for path in output_dir.iterdir()
        if (found := re.fullmatch(r"checkpoint-(\d+)", path.name)) and path.is_dir()
    }
    return sorted(steps, key=steps.get, reverse=True)


def newest_intact(output_dir: Path) -> tuple[Path | None, list[str]]:
    """(the newest checkpoint-N that is whole or None, why each newer one is not)."""
    complaints = []
    for folder in checkpoints(output_dir):
        try:
            check_manifest(folder)
        except DamagedCheckpointError as error:
            complaints.append(str(error))
            continue
        return folder, complaints
    return None, complaints


def _read(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise _damaged(folder, f"it has no {MANIFEST}, which is written last")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        right = content.pop("sha256") == _of_content(content)
    except (ValueError, KeyError, TypeError, AttributeError):
        right = False
    if not right:
        raise _damaged(folder, f"its {MANIFEST} is not as it was written")
    return content


def _damaged(folder: Path, reason: str) -> DamagedCheckpointError:
    return DamagedCheckpointError(
        f"{folder} cannot be trusted: {reason}; resume from another checkpoint, or give "
        "resume_from_checkpoint=last for the newest one that is whole"
    )


def _of_content(content: dict[str, Any]) -> str:
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
