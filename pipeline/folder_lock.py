"""One run at a time in an output folder: two would delete and rename each other's saves.

    with lock_folder(args.output_dir):
        ...

The lock is the kernel's (flock on `.lock` in the folder), so it ends with the process however that
ends, and a file that a killed run has left locks nothing. Of several processes of one run only the
first takes it. Within a process it may be taken again.
"""

import errno
import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK = ".lock"
# What a file system without locks, or one that gives none to this process, answers.
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


class FolderInUseError(OSError):
    """Another process writes into the folder, in one line."""


@dataclass
class _Held:
    descriptor: int
    times: int = 1


_delayed_update: dict[Path, _Held] = {}


@contextmanager
def lock_folder(folder: str | Path) -> Iterator[None]:
    """Hold the lock of an output folder, which is made where it is missing.

    Raises FolderInUseError with the process and the machine that hold it. On a file system without
    locks it warns and goes on. A folder that nothing was written to is taken away again.
    """
    path = Path(folder).resolve()
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    if path in _delayed_update:
        _delayed_update[path].times += 1
    else:
        made = [p for p in (path, *path.parents) if not p.exists()]
        path.mkdir(parents=True, exist_ok=True)
        descriptor = _take(path)
        if descriptor is None:
            yield
            return
        _delayed_update[path] = _Held(descriptor)
    try:
        yield
    finally:
        held = _delayed_update.get(path)
        if held is not None:
            held.times -= 1
            if not held.times:
                del _delayed_update[path]
                _release(path, held.descriptor)
                _remove_empty(made)


def keep_lock(folder: Path, successor: Path) -> None:
    """Put the lock of a folder into the one that will take its place by a rename, so that there is
    no moment without it."""
    with suppress(OSError):  # none is held, or the file system has no hard links
        os.link(folder / LOCK, successor / LOCK)


def _take(path: Path) -> int | None:
    """A descriptor that holds the lock; None where the file system has none."""
    while True:
        descriptor = os.open(path / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if fcntl is None:
                raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(descriptor, 1000, 0) if hasattr(os, "pread") else b""
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
                f"{path} is in use by {_named(holder)}; wait for it to end, stop it, or give "
                "another --output_dir"
            ) from None
        if _is_current(descriptor, path / LOCK):
            break
        os.close(descriptor)  # its holder has ended and removed it in this very moment
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
    if _is_current(descriptor, path / LOCK):
        (path / LOCK).unlink(missing_ok=True)  # before it is free, so that nobody else's goes
    os.close(descriptor)


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:  # something was written
            return


def _named(holder: bytes) -> str:
    try:
        about = json.loads(holder)
        return f"process {about['pid']} on {about['host']}"
    except (ValueError, KeyError, TypeError):
        return "another process"


def _forget() -> None:
    """In a child of fork: the lock is its parent's, and must end with the parent."""
    for held in _delayed_update.values():
        with suppress(OSError):
            os.close(held.descriptor)
    _delayed_update.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
