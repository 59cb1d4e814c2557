"""Worker processes of the grader: one for math-verify, one for the scorers of puzzles.

A computation on a text that a model wrote can hang on a dozen characters inside C code, where no
signal handler of Python runs. So it runs in a process of its own (`worker_process.py`), started at
the first request and kept, with limits on processor time and memory, and ended with this process.

The outcome does not depend on wall-clock time, since on a busy machine every computation waits.
The worker limits processor time; a comparison that exceeds it is repeated in a fresh process with
the next limit. After the last limit it has no outcome: "timeout" or "lost".
"""

import atexit
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import wait
from pathlib import Path

SILENCE_SECONDS = 600.0  # wall-clock; a worker that sends nothing for so long is replaced
START_SECONDS = 600.0  # wall-clock
SETTLED = frozenset(("equal", "different", "failed"))

FOLDER = Path(__file__).parent
COUNTED = {"timeout": "timeouts", "failed": "failures", "lost": "lost"}


class WorkerError(RuntimeError):
    """A worker process cannot be started on this machine."""


class Worker:
    """A worker process and its lock; safe to use from any thread and after a fork.

    Args:
        computation: name of the module in this folder that the process loads.
        package: what that module imports, for the error message.
        is_confined: whether the process gives up files and system calls first.

    `counts` has the requests by outcome, the starts, and the comparisons left without an outcome.
    """

    def __init__(self, computation: str, package: str, *, is_confined: bool = False):
        self.computation, self.package, self.is_confined = computation, package, is_confined
        self.counts = dict.fromkeys(("requests", *COUNTED.values(), "starts", "no_verdict"), 0)
        self._reset()
        atexit.register(self.close)
        # A forked child must not share the worker of its parent.
        os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        self.lock = threading.Lock()
        self.process: subprocess.Popen[bytes] | None = None
        self.replies = -1

    def compare(self, first: str, second: str, limits: Sequence[float]) -> tuple[str, float]:
        """(outcome, seconds of processor time in all), repeated while there is no outcome.

        `limits` are seconds of processor time, one for each try. The outcome of the last try is
        "timeout" or "lost" where none was settled.
        """
        spent = 0.0
        for seconds in limits:
            outcome, used = self.request(first, second, seconds)
            spent += used
            if outcome in SETTLED:
                return outcome, spent
        self.counts["no_verdict"] += 1
        return outcome, spent

    def request(self, first: str, second: str, seconds: float) -> tuple[str, float]:
        """(outcome, seconds of processor time) of one try with at most `seconds` of it.

        equal, different   the result
        failed             the computation raised an exception or ran out of memory
        timeout            it needed more processor time
        lost               the process was killed from outside, or was silent for SILENCE_SECONDS
        """
        message = json.dumps([first, second, seconds]).encode() + b"\n"
        with self.lock:
            self._ensure_running()
            outcome, used = self._reply(message)
            self.counts["requests"] += 1
            if outcome in COUNTED:
                self.counts[COUNTED[outcome]] += 1
        return outcome, seconds if outcome == "timeout" else used

    def _reply(self, message: bytes) -> tuple[str, float]:
        assert self.process is not None and self.process.stdin is not None
        with suppress(BrokenPipeError):  # a worker killed from outside is started anew
            os.write(self.process.stdin.fileno(), message)
        outcome, _, used = _read_line(self.replies, SILENCE_SECONDS).partition(" ")
        if not outcome:
            self.close()
        return outcome or "lost", float(used or 0.0)

    def _ensure_running(self) -> None:
        if self.process is not None and self.process.poll() is None:
            return
        self.close()
        self.counts["starts"] += 1
        self.replies, worker_end = os.pipe()
        script, computation = FOLDER / "worker_process.py", FOLDER / f"{self.computation}.py"
        # -P keeps this folder off the import path, where its modules would hide installed ones.
        # Replies have a pipe of their own, since libraries print to stdout. In a session of its
        # own, the worker gets no Ctrl-C.
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(script), str(computation), str(worker_end)]
            + ["confined"] * self.is_confined,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            bufsize=0,
            pass_fds=(worker_end,),
            start_new_session=True,
            env=os.environ | {"PYTHONHASHSEED": "0"},  # sets of symbols in the same order each time
        )
        os.close(worker_end)
        if _read_line(self.replies, START_SECONDS) != "ready":
            self.close()
            raise WorkerError(
                f"the worker process that runs {self.package} did not start; see its error above, "
                f"or try: {sys.executable} -c 'import {self.package}'"
            )

    def close(self) -> None:
        """End the worker; its child in the middle of a computation ends by its own timer."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            if self.process.stdin is not None:
                self.process.stdin.close()
            os.close(self.replies)
            self.process = None


def _read_line(pipe: int, seconds: float) -> str:
    """The next line from a pipe, or "" when none arrives within `seconds` of wall-clock time."""
    line, deadline = b"", time.monotonic() + seconds
    while not line.endswith(b"\n"):
        ready = wait([pipe], max(0, deadline - time.monotonic()))
        piece = os.read(pipe, 64) if ready else b""
        if not piece:
            return ""
        line += piece
    return line.decode().strip()
