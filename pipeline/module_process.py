"""Run a command of this project in a process of its own that may save before it ends."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

GRACE_SECONDS = 2.0


def start_module(
    arguments: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    log: Path | None = None,
) -> subprocess.Popen:
    """Start `python -m` with these arguments.

    Args:
        arguments: the module and its command line
        environment: variables that are added to those of this process
        log: file that the output is appended to; default: the streams of this process
    """
    command = [sys.executable, "-m", *arguments]
    variables = os.environ | dict(environment or {})
    if log is None:
        return subprocess.Popen(command, env=variables)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        return subprocess.Popen(
            command, env=variables, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT
        )


def run_module(arguments: Sequence[str]) -> int:
    """Exit code of `python -m` with these arguments.

    After Ctrl-C or SIGTERM it returns to the caller once the command has saved and ended.
    """
    with sigterm_raises():
        process = start_module(arguments)
        try:
            return process.wait()
        except BaseException:
            stop([process])
            raise


def stop(processes: Iterable[subprocess.Popen]) -> None:
    """Send SIGTERM to every process and wait until it has ended; Ctrl-C meanwhile kills them.

    A terminal sends Ctrl-C to child processes as well, which then end by themselves: SIGTERM goes
    to those that still run after `GRACE_SECONDS`.
    """
    running = list(processes)
    deadline = time.monotonic() + GRACE_SECONDS
    try:
        while time.monotonic() < deadline and any(p.poll() is None for p in running):
            time.sleep(0.05)
        for process in running:
            process.terminate()  # without effect on one that has ended
        for process in running:
            process.wait()
    except BaseException:
        for process in running:
            process.kill()
            process.wait()
        raise


@contextmanager
def sigterm_raises() -> Iterator[None]:
    """Within the block SIGTERM raises SystemExit(143), so that child processes can be stopped.

    Without effect off the main thread, where Python allows no handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _raise_exit)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _raise_exit(signum: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + signum)


def exit_code(code: int) -> int:
    """The exit code as a shell has it: 128 plus the number of the signal that ended a process.

    >>> exit_code(2), exit_code(-9)
    (2, 137)
    """
    return code if code >= 0 else 128 - code
