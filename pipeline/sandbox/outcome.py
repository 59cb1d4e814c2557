"""Collect the output of a program while it gets its input, and how it ended."""

import os
import selectors
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import IO

from pipeline.sandbox.launch import Limits, bubblewrap_path
from pipeline.sandbox.waiting import ProcessWaiter

STDERR_BYTES = 2000


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The output of a program and how it ended."""

    stdout: str
    stderr: str  # its last characters
    ended: str  # "exit 0", "exit 1", "signal 9", "time", "output", "asleep", "no verdict"
    seconds: float

    @property
    def finished(self) -> bool:
        """Whether the program ended by itself with exit code 0."""
        return self.ended == "exit 0"


def collect(process: subprocess.Popen[bytes], stdin: bytes, limits: Limits) -> Outcome:
    """Write to a process and read from it until it ends or exceeds its time or its output."""
    begin, waiter = time.monotonic(), ProcessWaiter(process.pid, limits)
    assert process.stdout is not None and process.stderr is not None
    texts, ended = {process.stdout: b"", process.stderr: b""}, ""
    with selectors.DefaultSelector() as ready:
        for pipe in texts:
            ready.register(pipe, selectors.EVENT_READ)
        if process.stdin is not None:
            os.set_blocking(process.stdin.fileno(), False)
            ready.register(process.stdin, selectors.EVENT_WRITE)
        while ready.get_map() and not ended:
            events = waiter.select(ready)
            for key, _ in events:
                if key.fileobj is process.stdin:
                    stdin = _feed(ready, process.stdin, stdin)
                else:
                    _read(ready, key.fileobj, texts)
            texts[process.stderr] = texts[process.stderr][-STDERR_BYTES:]
            if not events:
                ended = waiter.ended
            elif len(texts[process.stdout]) > limits.output_bytes:
                ended = "output"
        ended = ended or _ending(process, waiter)
    stdout, stderr = (text.decode(errors="replace") for text in texts.values())
    seconds = time.monotonic() - begin
    return Outcome(stdout=stdout, stderr=stderr, ended=ended, seconds=seconds)


def _read(ready: selectors.BaseSelector, pipe: IO[bytes], texts: dict[IO[bytes], bytes]) -> None:
    piece = os.read(pipe.fileno(), 1 << 16)
    texts[pipe] += piece
    if not piece:
        ready.unregister(pipe)


def _feed(ready: selectors.BaseSelector, pipe: IO[bytes], stdin: bytes) -> bytes:
    """What is left to send after one more piece; nothing where the program stopped reading."""
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


def _ending(process: subprocess.Popen[bytes], waiter: ProcessWaiter) -> str:
    code = waiter.wait(process)
    if code is None:  # it closed its output and still runs
        return waiter.ended
    assert isinstance(process.args, list)
    if process.args[0] == bubblewrap_path() and code - 128 in signal.valid_signals():
        code = 128 - code  # bwrap encodes signals as a shell does
    if code in (-signal.SIGXCPU, -signal.SIGKILL):
        return "time"
    return f"exit {code}" if code >= 0 else f"signal {-code}"
