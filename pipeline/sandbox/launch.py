"""Starts a guard at a level of isolation, and ends everything that it started.

bubblewrap   namespaces of its own, whose only files are the libraries, read-only, with no /proc,
             no network and no other process; a seccomp filter on bubblewrap itself; inside, the
             guard with all that the landlock level has, Landlock too where the kernel has it
landlock     the guard alone: Landlock, seccomp, rlimits, no root
"""

import ctypes
import functools
import importlib.util
import marshal
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pipeline.sandbox import _seccomp
from pipeline.sandbox._landlock import DEVICES
from pipeline.sandbox._privileges import library_folders

LEVELS = ("bubblewrap", "landlock")
FOLDER = str(Path(__file__).parent)
INSIDE = "/guard"  # where FOLDER is found inside bubblewrap
GONE_MILLISECONDS = 10_000  # for a namespace to end after SIGKILL
ALIVE_MILLISECONDS = 100
END_MILLISECONDS = 200  # for a guard that ends: between its pipes' ends, one by one
PIDFD_SEND_SIGNAL, PIDFD_OPEN, P_PIDFD = 424, 434, 3
START = "import sys; sys.path.insert(0, {folder!r}); import _guard; _guard.main({fd})"

libc = ctypes.CDLL(None, use_errno=True)


class SandboxError(ValueError):
    """No isolation is to be had here, so nothing was run."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one program may use."""

    seconds: float = 4.0  # of the processor
    asleep_seconds: float = 5.0  # neither computing nor waiting for a processor (thread_states)
    wall_seconds: float = 600.0  # of the clock: on a busy machine even an honest program waits
    memory_bytes: int = 1 << 30  # of address space, the interpreter's own included
    output_bytes: int = 1 << 20  # of stdout; a program that writes more is stopped


@contextmanager
def guarded(
    orders: dict, limits: Limits, level: str, pass_fds: tuple[int, ...] = (), **pipes: int
) -> Iterator[subprocess.Popen]:
    """A guard on its orders; at the end it and all that it started are killed and waited for.

    Raises SandboxError where the guard cannot be started or could not take a step, so that nothing
    was run.
    """
    command, folder = [], FOLDER
    with ExitStack() as kept, ExitStack() as lent:
        judge = _closed_with(lent, _pidfd(os.getpid()))
        began, begin = _pipe(kept, lent)
        told, tell = _pipe(kept, lent)
        isolation = {
            "seconds": limits.seconds,
            "memory_bytes": limits.memory_bytes,
            "landlock": level == "landlock",  # else only where the kernel has it
            "readable": numpy_folders(),
            "numpy": next(iter(numpy_folders()), ""),
            "judge": judge,
            "begin": begin,
        }
        file = _data(lent, marshal.dumps({**orders, "isolation": isolation}))
        fds = [judge, begin, file, *pass_fds]
        if level == "bubblewrap":
            rules = _data(lent, _seccomp.bounds())
            fds += [rules, tell]
            command = [*bubblewrap(), "--seccomp", str(rules), "--info-fd", str(tell), "--"]
            folder = INSIDE
        try:
            process = subprocess.Popen(
                [*command, *_interpreter(folder, file)],
                stderr=pipes.pop("stderr", subprocess.PIPE),
                env={"PATH": "/usr/bin:/bin"},
                cwd="/",
                pass_fds=fds,
                start_new_session=True,
                **pipes,
            )
        except OSError as error:
            raise SandboxError(f"{level} could not be started: {error}; nothing was run") from error
        lent.close()
        first = -1
        try:
            first = _first_process(told, process) if command else -1
            yield process
            failed = _ended_before_it_began(began)
        finally:
            _end(process, first)
        if failed:
            raise SandboxError(
                f"{level} ended with status {process.returncode} before the program began, so "
                "nothing was run; try again, or choose another level"
            )


def _first_process(told: int, monitor: subprocess.Popen) -> int:
    """A pidfd of the first process in the namespace, which takes all others with it when it ends;
    -1 where there is none. `told` is what bubblewrap says of it as JSON."""
    text, ready = b"", select.poll()
    ready.register(told, select.POLLIN)
    while not re.search(rb"}\s*$", text):
        # Without the end of the pipe where a process that was forked here has its other end too.
        if ready.poll(ALIVE_MILLISECONDS):
            piece = os.read(told, 4096)
            if not piece:
                break
            text += piece
        elif monitor.poll() is not None:
            break
    found = re.search(rb'"child-pid": (\d+)', text)
    if not found:
        return -1
    try:
        first = _pidfd(int(found[1]))
    except ProcessLookupError:
        return -1
    with suppress(OSError):  # it may have ended, and another process have its number
        status = Path(f"/proc/{int(found[1])}/status").read_text()
        if f"PPid:\t{monitor.pid}\n" in status:
            return first
    os.close(first)
    return -1


def _end(process: subprocess.Popen, first: int) -> None:
    """Kill the guard and, by its first process, the namespace; back when nothing of it runs."""
    if first >= 0:
        libc.syscall(PIDFD_SEND_SIGNAL, first, signal.SIGKILL, None, 0)
        gone = select.poll()
        gone.register(first, select.POLLIN)
        gone.poll(GONE_MILLISECONDS)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if first >= 0:
        # bwrap does not wait for it; it is left to this process where that is a container's first.
        with suppress(ChildProcessError):
            os.waitid(P_PIDFD, first, os.WEXITED | os.WNOHANG)
        os.close(first)
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with suppress(BrokenPipeError):
                pipe.close()


def _interpreter(folder: str, orders_fd: int) -> list[str]:
    start = START.format(folder=folder, fd=orders_fd)
    return [_python(), "-I", "-S", "-B", "-X", "utf8", "-c", start]


def _python() -> str:
    return str(Path(sys.executable).resolve())


@functools.cache
def bubblewrap_path() -> str:
    """Where bwrap is, "" where it is not installed; this file is tried and then started."""
    found = shutil.which("bwrap")
    return os.path.abspath(found) if found else ""


def bubblewrap() -> list[str]:
    """No file of the machine but the interpreter, its libraries and numpy, read-only; no /proc."""
    if os.getuid() == 0:
        # No user namespace, whose root would be the machine's: the guard becomes another user.
        spaces = ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts"]
        spaces += ["--unshare-cgroup-try", "--cap-drop", "ALL"]
        spaces += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        spaces = ["--unshare-all", "--cap-drop", "ALL"]
    places = [*library_folders(), "/etc/alternatives", _python()]
    numpy, packages = numpy_folders(), _packages()
    parents = {
        str(folder) for place in [*places, *numpy, *DEVICES] for folder in Path(place).parents
    }
    return [
        bubblewrap_path(), *spaces, "--die-with-parent", "--new-session",
        # Made as such they can be entered by everybody; what --ro-bind makes, by its maker alone.
        *_each("--dir", sorted(parents - {"/"})), *_each("--ro-bind-try", places, twice=True),
        *_each("--tmpfs", packages), *_each("--ro-bind", [*numpy], twice=True),
        "--ro-bind", FOLDER, INSIDE, *_each("--dev-bind", DEVICES, twice=True),
        *_each("--remount-ro", [*packages, "/"]), "--chdir", "/",
    ]  # fmt: skip


def _each(option: str, places: Iterable[str], twice: bool = False) -> list[str]:
    return [
        part for place in places for part in ([option, place, place] if twice else [option, place])
    ]


@functools.cache
def numpy_folders() -> list[str]:
    """Where numpy and the libraries that come with it lie; nothing where it is not installed."""
    found = importlib.util.find_spec("numpy")
    if found is None or not found.submodule_search_locations:
        return []
    folder = next(iter(found.submodule_search_locations))
    return [place for place in (folder, f"{folder}.libs") if os.path.isdir(place)]


def _packages() -> list[str]:
    """Folders of installed packages inside those of the libraries; empty inside bubblewrap."""
    standard = library_folders()[0]
    places = [f"{standard}/site-packages", f"{standard}/dist-packages"]
    return [p for p in [*places, "/usr/lib/python3/dist-packages"] if os.path.isdir(p)]


def _data(lent: ExitStack, data: bytes) -> int:
    """A file without a name that holds `data`, to be read from its start."""
    fd, path = tempfile.mkstemp()
    os.unlink(path)
    with open(_closed_with(lent, fd), "wb", closefd=False) as file:
        file.write(data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _pidfd(pid: int) -> int:
    """A descriptor of a process, by system call: os.pidfd_open is not in every build of Python."""
    fd = libc.syscall(PIDFD_OPEN, pid, 0)
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return fd


def _closed_with(lent: ExitStack, fd: int) -> int:
    lent.callback(os.close, fd)
    return fd


def _pipe(kept: ExitStack, lent: ExitStack) -> tuple[int, int]:
    """A pipe whose reading end stays here, and whose writing end goes to a guard."""
    read, write = os.pipe()
    return _closed_with(kept, read), _closed_with(lent, write)


def _ended_before_it_began(began: int) -> bool:
    """Whether a guard ended without a word that it has confined itself and begins the program."""
    heard = select.poll()
    heard.register(began, select.POLLIN)
    return bool(heard.poll(END_MILLISECONDS)) and not os.read(began, 1)
