"""Start a confined process at a level of isolation, and end everything that it started.

bubblewrap   namespaces of its own, whose only files are the libraries, read-only, with no /proc,
             no network and no other process; a seccomp filter on bubblewrap itself; inside, all
             restrictions of the landlock level, and Landlock where the kernel has it
landlock     Landlock, seccomp, rlimits, no root
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
INSIDE = "/sandbox"  # where FOLDER is found inside bubblewrap
GONE_MILLISECONDS = 10_000  # for a namespace to end after SIGKILL
ALIVE_MILLISECONDS = 100
END_MILLISECONDS = 200  # between the ends of the pipes of a process that ends
PIDFD_SEND_SIGNAL, PIDFD_OPEN, P_PIDFD = 424, 434, 3
START = "import sys; sys.path.insert(0, {folder!r}); import _confined; _confined.main({fd})"

libc = ctypes.CDLL(None, use_errno=True)


class SandboxError(ValueError):
    """No isolation works on this machine, so nothing was run."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The resources that one program may use."""

    seconds: float = 10.0  # of the processor; shared cores take twice as long for the same work
    asleep_seconds: float = 5.0  # neither computing nor waiting for a processor (waiting.py)
    wall_seconds: float = 600.0  # wall-clock: on a busy machine every program waits
    memory_bytes: int = 1 << 30  # of address space, the interpreter's own included
    output_bytes: int = 1 << 20  # of stdout; a program that writes more is stopped


@contextmanager
def confined_process(
    spec: dict,
    limits: Limits,
    level: str,
    pass_fds: tuple[int, ...] = (),
    *,
    stdin: int,
    stdout: int,
    stderr: int = subprocess.PIPE,
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that confines itself and runs `spec`; it and its children are killed at the end.

    `stdin`, `stdout` and `stderr` are as in subprocess.Popen.

    Raises SandboxError where it cannot be started or a restriction failed, so that nothing was run.
    """
    command: list[str] = []
    folder = FOLDER
    with ExitStack() as kept, ExitStack() as lent:
        parent = _closed_with(lent, _pidfd(os.getpid()))
        start_reader, start_writer = _pipe(kept, lent)
        info_reader, info_writer = _pipe(kept, lent)
        isolation = {
            "seconds": limits.seconds,
            "memory_bytes": limits.memory_bytes,
            "landlock": level == "landlock",  # else only where the kernel has it
            "readable": numpy_folders(),
            "numpy": next(iter(numpy_folders()), ""),
            "parent": parent,
            "started": start_writer,
        }
        file = _data(lent, marshal.dumps({**spec, "isolation": isolation}))
        fds = [parent, start_writer, file, *pass_fds]
        if level == "bubblewrap":
            rules = _data(lent, _seccomp.bounds())
            fds += [rules, info_writer]
            command = [*bubblewrap(), "--seccomp", str(rules)]
            command += ["--info-fd", str(info_writer), "--"]
            folder = INSIDE
        try:
            process = subprocess.Popen(
                [*command, *_interpreter(folder, file)],
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                env={"PATH": "/usr/bin:/bin"},
                cwd="/",
                pass_fds=fds,
                start_new_session=True,
            )
        except OSError as error:
            raise SandboxError(f"{level} could not be started: {error}; nothing was run") from error
        lent.close()
        first = -1
        try:
            first = _first_process(info_reader, process) if command else -1
            yield process
            failed = _ended_before_start(start_reader)
        finally:
            _end(process, first)
        if failed:
            raise SandboxError(
                f"{level} ended with status {process.returncode} before the program began, so "
                "nothing was run; try again, or choose another level"
            )


def _first_process(info_reader: int, monitor: subprocess.Popen[bytes]) -> int:
    """A pidfd of the first process in the namespace, which takes all others with it when it ends;
    -1 where there is none. bubblewrap writes its number as JSON to the pipe `info_reader`."""
    text, ready = b"", select.poll()
    ready.register(info_reader, select.POLLIN)
    while not re.search(rb"}\s*$", text):
        # Without the end of the pipe where a process that was forked here has its other end too.
        if ready.poll(ALIVE_MILLISECONDS):
            piece = os.read(info_reader, 4096)
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


def _end(process: subprocess.Popen[bytes], first: int) -> None:
    """Kill the process and, by its first process, the namespace; return when all have ended."""
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


def _interpreter(folder: str, spec_fd: int) -> list[str]:
    start = START.format(folder=folder, fd=spec_fd)
    return [_python(), "-I", "-S", "-B", "-X", "utf8", "-c", start]


def _python() -> str:
    return str(Path(sys.executable).resolve())


@functools.cache
def bubblewrap_path() -> str:
    """The path of bwrap, "" where it is not installed."""
    found = shutil.which("bwrap")
    return os.path.abspath(found) if found else ""


def bubblewrap() -> list[str]:
    """The command line of bubblewrap, up to the program that it starts.

    Only the interpreter, its libraries and numpy are mounted, read-only; no /proc.
    """
    if os.getuid() == 0:
        # No user namespace, whose root would be that of the machine: the process changes its user.
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
        # Folders of --dir can be entered by everybody, those of --ro-bind by their creator alone.
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
    """The folders of numpy and of the libraries that come with it; none where it is missing."""
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
    """A pipe whose reading end stays here, and whose writing end goes to the confined process."""
    read, write = os.pipe()
    return _closed_with(kept, read), _closed_with(lent, write)


def _ended_before_start(start_reader: int) -> bool:
    """Whether the process ended before it wrote that it is confined and starts the program."""
    ready = select.poll()
    ready.register(start_reader, select.POLLIN)
    return bool(ready.poll(END_MILLISECONDS)) and not os.read(start_reader, 1)
