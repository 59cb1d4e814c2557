"""The processes of one launch on one or several hosts.

    require_shared_folder(args.output_dir)      # every process sees what the first one writes there
    rows = once_a_host(lambda: read_rows())     # read by one process of each host
    wait_for_files(folder)                      # the first process sees what the others wrote

The launcher says which processes share a host: LOCAL_RANK and LOCAL_WORLD_SIZE beside RANK and
WORLD_SIZE. All functions are collective: every process of the launch calls them, in the same order.
They do nothing, or only `compute`, without a process group.
"""

import hashlib
import os
import pickle
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

import torch

SECONDS_TO_APPEAR = 30.0  # of a file of another host: NFS may list a folder as it was a while ago
SECONDS_BETWEEN_LOOKS = 0.1
REMEDY = (
    "give an --output_dir that all hosts share, such as one on NFS or Lustre, as an absolute path"
)
RowT = TypeVar("RowT")
T = TypeVar("T")


@dataclass(frozen=True)
class Place:
    """Where a process stands in its launch.

    Args:
        rank: its number among all `world` processes; 0 is the first process
        local_rank: its number among the `local_world` processes of its host
        host: name of the host, for messages
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1
    host: str = ""

    @property
    def is_main(self) -> bool:
        """Whether it is the first process, which prints and merges."""
        return self.rank == 0

    @property
    def several_hosts(self) -> bool:
        """Whether other processes of the launch are on other hosts."""
        return self.local_world < self.world


def this_place() -> Place:
    """The place that `accelerate launch` or torchrun has set in the environment.

    Without LOCAL_WORLD_SIZE all processes count as those of one host.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    return Place(
        rank=int(os.environ.get("RANK", "0")),
        world=world,
        local_rank=int(os.environ.get("LOCAL_RANK", "0")),
        local_world=int(os.environ.get("LOCAL_WORLD_SIZE", str(world))),
        host=socket.gethostname(),
    )


def require_one_process(command: str) -> None:
    """Raise ValueError in a launch of several processes, which would all write the same files."""
    world = this_place().world
    if world > 1:
        raise ValueError(
            f"{command} runs in one process and was started in {world} (WORLD_SIZE={world}); start "
            f"it without accelerate launch: python -m {command}"
        )


@contextmanager
def only_main_prints() -> Iterator[None]:
    """Discard what the processes of a launch print to stdout, but for the first one."""
    if this_place().is_main:
        yield
        return
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        yield


def require_shared_folder(folder: str | Path) -> None:
    """Check that every process sees a file that the first one writes into `folder`, within
    SECONDS_TO_APPEAR.

    Raises:
        ValueError: a host does not see it; one process of each host raises it.
        OSError: the first process cannot write there.
        SystemExit: with code 2 on the other processes of those hosts.
    """
    place = this_place()
    if place.world == 1 or not _connected():
        return
    path = Path(folder).absolute()
    made = [p for p in (path, *path.parents) if not p.exists()] if place.rank == 0 else []
    try:
        name = _write_token(path) if place.rank == 0 else None
    except OSError:
        _gathered(None)
        raise
    name = _gathered(name)[0]
    if name is None:
        raise SystemExit(2)
    seen = _appears(path / name)
    found = _gathered((place.host, seen))
    if place.rank == 0:
        (path / name).unlink(missing_ok=True)
        _remove_empty(made)
    without = sorted({host for host, seen in found if not seen})
    if without:
        _stop(
            place,
            f"output_dir={folder} is not the same folder on all hosts: {', '.join(without)} does "
            f"not see what the first process writes there on {found[0][0]}; {REMEDY}",
        )


def once_a_host(compute: Callable[[], list[RowT]]) -> list[RowT]:
    """Return the rows of `compute`, which one process of each host calls.

    The others read its rows from a temporary file of their host. Rows are pickled.

    Raises:
        ValueError: `compute` failed on another host, or the rows of two hosts differ.
        SystemExit: with code 2 where the own host's process fails.
    """
    place = this_place()
    if place.world == 1 or not _connected():
        return compute()
    rows: list[RowT] | None = None
    own, failure, folder = _Outcome(place.host), None, None
    if place.local_rank == 0:
        try:
            rows = compute()
            folder = Path(tempfile.mkdtemp(prefix="thinkhead-rows-"))
            own = _outcome(rows, folder, place)
        except (ValueError, OSError, ImportError) as error:
            own, failure = _Outcome(place.host, error=" ".join(str(error).split())), error
    try:
        outcomes = _gathered(own if place.local_rank == 0 else None)
        if failure is not None:
            raise failure
        _require_equal([found for found in outcomes if found is not None], place)
        leader = next(found for found in reversed(outcomes[: place.rank + 1]) if found is not None)
        if rows is None:
            rows = pickle.loads(Path(leader.path).read_bytes())
        torch.distributed.barrier()
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
    return rows


def wait_for_files(folder: Path) -> None:
    """Have the first process wait until it sees every file of `folder` that another host sees.

    Raises:
        OSError: on the first process, where some are missing after SECONDS_TO_APPEAR.
    """
    place = this_place()
    if not place.several_hosts or not _connected():
        return
    names = sorted({name for names in _gathered(_sizes(folder)) for name in names})
    if place.rank:
        return
    end = time.monotonic() + SECONDS_TO_APPEAR
    while missing := [name for name in names if name not in _sizes(folder)]:
        if time.monotonic() > end:
            listed = ", ".join(name for name, _ in missing[:5])
            raise OSError(f"{listed} of another host cannot be seen on {place.host}; {REMEDY}")
        time.sleep(SECONDS_BETWEEN_LOOKS)


@dataclass(frozen=True)
class _Outcome:
    """What the process that computes for its host tells the others."""

    host: str
    path: str = ""
    rows: int = 0
    digest: str = ""
    error: str = ""


def _outcome(rows: Sequence[object], folder: Path, place: Place) -> _Outcome:
    path = folder / "rows.pickle"
    if place.local_world > 1:
        path.write_bytes(pickle.dumps(rows))
    digest = _digest(rows) if place.several_hosts else ""
    return _Outcome(place.host, str(path), len(rows), digest)


def _digest(rows: Sequence[object]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(repr(row).encode())
    return digest.hexdigest()


def _require_equal(outcomes: Sequence[_Outcome], place: Place) -> None:
    """Raise where the rows of a host are missing or others than those of the first one."""
    first = outcomes[0]
    for found in outcomes:
        if found.error:
            _stop(place, f"the data could not be read on {found.host}: {found.error}")
        if found.digest != first.digest:
            _stop(
                place,
                f"{first.host} has read {first.rows:,} rows and {found.host} {found.rows:,} rows, "
                "which are not the same; give all hosts the same data (--data_root, --dataset) and "
                "the same version of this package",
            )


def _stop(place: Place, message: str) -> None:
    """Raise ValueError on one process of each host, SystemExit on the others."""
    if place.local_rank == 0:
        raise ValueError(message)
    raise SystemExit(2)


def _write_token(path: Path) -> str:
    path.mkdir(parents=True, exist_ok=True)
    name = f".seen-{uuid4().hex}"
    (path / name).touch()
    return name


def _appears(path: Path) -> bool:
    end = time.monotonic() + SECONDS_TO_APPEAR
    while not path.is_file():
        if time.monotonic() > end:
            return False
        time.sleep(SECONDS_BETWEEN_LOOKS)
    return True


def _sizes(folder: Path) -> set[tuple[str, int]]:
    """(name, bytes) of the files in a folder and those below it."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {(path.relative_to(folder).as_posix(), path.stat().st_size) for path in files}


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:  # something is in it
            return


def _connected() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _gathered(own: T) -> list[T]:
    """The objects of all processes, in the order of their ranks."""
    found: list = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, own)
    return found
