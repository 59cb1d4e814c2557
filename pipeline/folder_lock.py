"""Lock an output folder for one run: two would delete and rename each other's checkpoints.

    with lock_folder(args.output_dir):
        ...

The lock is an flock on the file `.lock` in the folder, so the kernel releases it with the process,
and a file left by a killed run locks nothing. Of the processes of a run only rank 0 acquires it. A
process may acquire it again.
"""

import errno
import json
import os
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pipeline.runtime import same_when_stored

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
# The errors of a file system without locks, or without locks for this process.
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


# Files that tell what a folder holds, and how an error message calls it.
_MARKS = {
    "settings.json": "an evaluation",
    "metrics.json": "an evaluation",
    "recipe.json": "a recipe",
    "run.json": "a finished run",
}


class FolderInUseError(OSError):
    """Another process has the lock of the folder."""


@dataclass
class _Lock:
    descriptor: int
    made: list[Path]  # folders that did not exist before
    count: int = 1  # how often this process has acquired it


_locks: dict[Path, _Lock] = {}
_mutex = threading.Lock()  # for _locks; several threads may lock one folder


@contextmanager
def lock_folder(folder: str | Path) -> Iterator[None]:
    """Acquire the lock of an output folder, which is created where it is missing.

    Raises FolderInUseError with the process and the machine that have it. On a file system without
    locks it warns and continues. A folder that stays empty is removed again.
    """
    path = Path(folder).resolve()
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    with _mutex:
        if path in _locks:
            _locks[path].count += 1
            lock: _Lock | None = _locks[path]
        else:
            lock = _first_lock(path)
    try:
        yield
    finally:
        with _mutex:
            if lock is not None:
                lock.count -= 1
                if not lock.count:
                    _locks.pop(path, None)
                    _release(path, lock.descriptor)
                    _remove_empty(lock.made)


@contextmanager
def without_new_folder(folder: str | Path) -> Iterator[None]:
    """Context of a dry run: a folder that is missing before it, and empty after it, is removed."""
    made = _missing(Path(folder).resolve())
    try:
        yield
    finally:
        _remove_empty(made)


def _missing(path: Path) -> list[Path]:
    """The path and its parents that do not exist."""
    return [p for p in (path, *path.parents) if not p.exists()]


def _first_lock(path: Path) -> _Lock | None:
    """Lock a folder, which is created where it is missing; None where locks do not work."""
    made = _missing(path)
    path.mkdir(parents=True, exist_ok=True)
    descriptor = _acquire(path)
    if descriptor is None:
        return None
    _locks[path] = _Lock(descriptor, made)
    return _locks[path]


@contextmanager
def one_at_a_time(file: Path) -> Iterator[None]:
    """Context that one process of a machine is in at a time; others wait for the lock of `file`.

    On a file system without locks nobody waits.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as opened:
        if fcntl is not None:
            try:
                fcntl.flock(opened, fcntl.LOCK_EX)
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
        yield


def held_result(folder: str | Path) -> str | None:
    """What an output folder holds, such as "a finished run"; None if no result is in it."""
    return next((what for mark, what in _MARKS.items() if (Path(folder) / mark).is_file()), None)


def require_free(folder: str | Path, own: str) -> None:
    """Raise ValueError where a folder holds the result of another kind of command than `own`."""
    held = held_result(folder)
    if held not in (None, own):
        raise ValueError(f"{folder} holds {held}; give another --output_dir")


def differing_setting(
    before: Mapping[str, object], now: Mapping[str, object], *, added: frozenset[str]
) -> str | None:
    """The first setting, by name, that differs between two commands on one folder, or None.

    Settings of `added`, which folders of earlier versions lack, come last, and count only where
    both commands have them.
    """
    names = (before.keys() | now.keys()) - (added - (before.keys() & now.keys()))
    ordered = sorted(names, key=lambda name: (name in added, name))
    return next((n for n in ordered if not same_when_stored(before.get(n), now.get(n))), None)


def keep_lock(folder: Path, successor: Path) -> None:
    """Link the lock file of a folder into the folder that will replace it by a rename, so that the
    lock is never missing."""
    with suppress(OSError):  # no lock, or a file system without hard links
        os.link(folder / LOCK, successor / LOCK)


def _acquire(path: Path) -> int | None:
    """A descriptor with the lock; None where the file system has no locks."""
    while True:
        descriptor = os.open(path / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if fcntl is None:
                raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = os.pread(descriptor, 1000, 0) if hasattr(os, "pread") else b""
            os.close(descriptor)
            if error.errno in _NO_LOCKS:
                (path / LOCK).unlink(missing_ok=True)
                print(
                    f"warning: {path} lies on a file system without locks ({error.strerror}); "
                    "do not start a second run in it",
                    file=sys.stderr,
                )
                return None
            raise FolderInUseError(
                f"{path} is in use by {_named(owner)}; wait for it to end, stop it, or give "
                "another --output_dir"
            ) from None
        if _is_current(descriptor, path / LOCK):
            break
        os.close(descriptor)  # its owner ended and removed the file in the meantime
    about = json.dumps({"pid": os.getpid(), "host": socket.gethostname()})
    os.ftruncate(descriptor, 0)
    os.write(descriptor, about.encode())
    return descriptor


def _is_current(descriptor: int, file: Path) -> bool:
    try:
        found = file.stat()
    except FileNotFoundError:
        return False
    own = os.fstat(descriptor)
    return (own.st_dev, own.st_ino) == (found.st_dev, found.st_ino)


def _release(path: Path, descriptor: int) -> None:
    # The file first: after the release it may be the lock of another process.
    if _is_current(descriptor, path / LOCK):
        (path / LOCK).unlink(missing_ok=True)
    os.close(descriptor)


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:  # something was written
            return


def _named(owner: bytes) -> str:
    try:
        about = json.loads(owner)
        return f"process {about['pid']} on {about['host']}"
    except (ValueError, KeyError, TypeError):
        return "another process"


def _forget() -> None:
    """Drop the locks in a forked child: they belong to the parent and must end with it."""
    for lock in _locks.values():
        with suppress(OSError):
            os.close(lock.descriptor)
    _locks.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
