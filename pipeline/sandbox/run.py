"""A program that nobody has read, run where it can do no harm; the verdict is the caller's.

Two levels of isolation, each believed only after a hostile program has been tried in it here:

    bubblewrap   namespaces of its own (no files but the libraries, no network, no other process),
                 with the guard's seccomp filter and rlimits inside
    landlock     the guard alone: Landlock, seccomp, rlimits

Where neither holds, `SandboxError` says what is missing and nothing is run: a plain subprocess
stops next to nothing. No level stops a hole in the kernel itself.
"""

import functools
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

GUARD = Path(__file__).with_name("_guard.py")
LEVELS = ("bubblewrap", "landlock")
STDERR_BYTES = 2000


class SandboxError(ValueError):
    """No isolation is to be had here, so nothing was run."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one program may use."""

    seconds: float = 4.0  # of the processor
    wall_seconds: float = 15.0  # of the clock: on a busy machine even an honest program waits
    memory_bytes: int = 1 << 30  # of address space, the interpreter's own included
    output_bytes: int = 1 << 20  # of stdout; a program that writes more is stopped


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came out of a program."""

    stdout: str
    stderr: str  # its last characters
    ended: str  # "exit 0", "exit 1", "signal 9", "time", "output"
    seconds: float

    @property
    def finished(self) -> bool:
        return self.ended == "exit 0"


def run_program(
    program: str, stdin: str = "", limits: Limits | None = None, level: str | None = None
) -> Outcome:
    """The outcome of one Python program, fed with `stdin`, at a level of isolation (default: the
    strongest that works here).

    >>> run_program("print(int(input()) + 1)", "41").stdout
    '42\\n'
    """
    limits = limits or Limits()
    spec = {"mode": "program", "program": _text(program)}
    with started(spec, limits, level, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        return _collect(process, _text(stdin).encode(), limits)


def require_level(level: str | None = None) -> str:
    """The level asked for, or the strongest that works here; SandboxError without one."""
    working = working_levels()
    if level is None and working:
        return working[0]
    if level in working:
        return level
    tried = ", ".join(f"{name}: {why}" for name, why in _probed().items() if why)
    asked = f"level={level!r} does not isolate here" if level else "nothing isolates programs here"
    raise SandboxError(
        f"{asked} ({tried or f'known are {LEVELS}'}), so model-written programs are not run; use "
        "Linux 5.13 or newer with Landlock, or install bubblewrap"
    )


def working_levels() -> tuple[str, ...]:
    """The levels that held a hostile program back on this machine, the strongest first."""
    return tuple(level for level, why in _probed().items() if not why)


@contextmanager
def started(
    spec: dict, limits: Limits, level: str | None, pass_fds: tuple[int, ...] = (), **pipes: int
) -> Iterator[subprocess.Popen]:
    """A guard on its orders; killed and waited for at the end, whatever it does."""
    with _process(spec, limits, require_level(level), pass_fds, pipes) as process:
        yield process


@contextmanager
def _process(
    spec: dict, limits: Limits, level: str, pass_fds: tuple[int, ...], pipes: dict
) -> Iterator[subprocess.Popen]:
    orders = {
        "seconds": limits.seconds,
        "memory_bytes": limits.memory_bytes,
        "landlock": level == "landlock",
        "readable": [],
        # Inside bubblewrap the parent is another process; there --die-with-parent does this.
        "parent": os.getpid() if level == "landlock" else 0,
    } | spec
    with tempfile.TemporaryFile() as file:
        file.write(json.dumps(orders).encode())
        file.seek(0)
        process = subprocess.Popen(
            [*_WRAP[level](), *_interpreter(level), str(file.fileno())],
            stderr=pipes.pop("stderr", subprocess.PIPE),
            env={"PATH": "/usr/bin:/bin"},
            cwd="/",
            pass_fds=(file.fileno(), *pass_fds),
            start_new_session=True,
            **pipes,
        )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()


def _interpreter(level: str) -> list[str]:
    guard = "/guard.py" if level == "bubblewrap" else str(GUARD)
    return [str(Path(sys.executable).resolve()), "-I", "-S", "-B", "-X", "utf8", guard]


def _bubblewrap() -> list[str]:
    """No file of the machine but the interpreter and its libraries, read-only."""
    folders = ["/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache", sys.base_prefix]
    binds = [part for path in folders for part in ("--ro-bind-try", path, path)]
    return [
        "bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--clearenv",
        "--cap-drop", "ALL", *binds, "--ro-bind", str(GUARD), "/guard.py", "--proc", "/proc",
        "--dev", "/dev", "--remount-ro", "/dev", "--chdir", "/", "--",
    ]  # fmt: skip


_WRAP = {"bubblewrap": _bubblewrap, "landlock": list}

# Prints "held" where nothing of what it tries succeeds, and what a program needs does.
_PROBE = """
import os, socket, json, decimal, collections, heapq
CANARY = {canary!r}
def succeeds(act):
    try:
        act()
        return True
    except OSError:
        return False
tries = {{
    "read": lambda: open(CANARY).read(),
    "write": lambda: open(CANARY, "w"),
    "environment": lambda: open(f"/proc/{parent}/environ").read(),
    "socket": socket.socket,
    "fork": os.fork,
    "exec": lambda: os.execv("/bin/true", ["true"]),
    "kill": lambda: os.kill({parent}, 0),
}}
got = [name for name, act in tries.items() if succeeds(act)]
print("allows " + ", ".join(got) if got else "held")
"""


@functools.cache
def _probed() -> dict[str, str]:
    """{level: why it does not hold here, "" where it does}."""
    return {level: _why_not(level) for level in LEVELS}


def _why_not(level: str) -> str:
    if not sys.platform.startswith("linux"):
        return f"not on {sys.platform}"
    if level == "bubblewrap" and shutil.which("bwrap") is None:
        return "bwrap is not installed"
    with tempfile.NamedTemporaryFile() as canary:
        os.chmod(canary.name, 0o666)
        program = _PROBE.format(canary=canary.name, parent=os.getpid())
        spec, limits = {"mode": "program", "program": program}, Limits(wall_seconds=60.0)
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE}
        with _process(spec, limits, level, (), pipes) as process:
            outcome = _collect(process, b"", limits)
    if outcome.stdout == "held\n":
        return ""
    return (outcome.stdout or outcome.stderr or outcome.ended).strip().splitlines()[-1]


def _collect(process: subprocess.Popen, stdin: bytes, limits: Limits) -> Outcome:
    """Feed a process and read what it writes until it ends, or has had its time or its bytes."""
    begin = time.monotonic()
    texts, ended = {process.stdout: b"", process.stderr: b""}, ""
    with selectors.DefaultSelector() as ready:
        for pipe in texts:
            ready.register(pipe, selectors.EVENT_READ)
        if process.stdin is not None:
            os.set_blocking(process.stdin.fileno(), False)
            ready.register(process.stdin, selectors.EVENT_WRITE)
        while ready.get_map() and not ended:
            left = limits.wall_seconds - (time.monotonic() - begin)
            events = ready.select(left) if left > 0 else []
            for key, _ in events:
                if key.fileobj is process.stdin:
                    stdin = _feed(ready, process.stdin, stdin)
                else:
                    _read(ready, key.fileobj, texts)
            texts[process.stderr] = texts[process.stderr][-STDERR_BYTES:]
            if not events:
                ended = "time"
            elif len(texts[process.stdout]) > limits.output_bytes:
                ended = "output"
        ended = ended or _ending(process, limits.wall_seconds - (time.monotonic() - begin))
    stdout, stderr = (text.decode(errors="replace") for text in texts.values())
    seconds = time.monotonic() - begin
    return Outcome(stdout=stdout, stderr=stderr, ended=ended, seconds=seconds)


def _read(ready: selectors.BaseSelector, pipe: IO[bytes], texts: dict[IO[bytes], bytes]) -> None:
    piece = os.read(pipe.fileno(), 1 << 16)
    texts[pipe] += piece
    if not piece:
        ready.unregister(pipe)


def _feed(ready: selectors.BaseSelector, pipe: IO[bytes], stdin: bytes) -> bytes:
    """What is left to send after one more piece; nothing to a program that stopped reading."""
    try:
        stdin = stdin[os.write(pipe.fileno(), stdin[: 1 << 16]) :]
    except BlockingIOError:
        return stdin
    except BrokenPipeError:
        stdin = b""
    if not stdin:
        ready.unregister(pipe)
        with suppress(BrokenPipeError):
            pipe.close()
    return stdin


def _ending(process: subprocess.Popen, seconds: float) -> str:
    try:
        code = process.wait(max(seconds, 0.01))
    except subprocess.TimeoutExpired:  # it closed its output and goes on
        return "time"
    if process.args[0] == "bwrap" and code - 128 in signal.valid_signals():
        code = 128 - code  # how bwrap, as a shell, tells of a signal
    if code in (-signal.SIGXCPU, -signal.SIGKILL):
        return "time"
    return f"exit {code}" if code >= 0 else f"signal {-code}"


def _text(text: str) -> str:
    """Lone surrogates are no characters; a program that holds one is refused by its own syntax."""
    return text.encode(errors="replace").decode()
