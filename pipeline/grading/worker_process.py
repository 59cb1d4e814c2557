"""The process in which a computation of the grader runs; started by `pipeline.grading.worker`.

    python -P worker_process.py FILE DESCRIPTOR [confined]

It loads the module FILE, calls its `prepare()` once, and forks a child that answers requests with
the module's `comparison(first, second)`. A computation that takes too long, 9^{9^{9}} say, holds
the interpreter lock inside a C loop, where no Python code can stop it. So the child sets a timer
whose default action ends the process, and the next child is forked in milliseconds. The same timer
ends a child whose parent died during a computation.

    request  ["first", "second", seconds]                  stdin, one line of JSON
    reply    equal | different | failed, seconds it took   one line to DESCRIPTOR; "ready" first
             timeout | lost (killed from outside)

All seconds are processor time, so that the outcome does not depend on the load of the machine.
"""

import importlib.util
import json
import logging
import os
import resource
import signal
import sys
import time
from contextlib import suppress
from types import ModuleType

MEMORY_BYTES = 2 << 30


def main(file: str, descriptor: int, *, is_confined: bool) -> None:
    """Answer until the input ends: fork a child, and another whenever one ends early."""
    logging.disable(logging.CRITICAL)
    computation = _load(file)
    computation.prepare()
    _send(descriptor, "ready")
    while True:
        child = os.fork()
        if child == 0:
            _answer_requests(computation, descriptor, is_confined=is_confined)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0:
            return
        ended_by = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        outcomes: dict[int, str] = {signal.SIGPROF: "timeout", signal.SIGKILL: "lost"}
        _send(descriptor, outcomes.get(ended_by, "failed"))


def _load(file: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location("computation", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _answer_requests(computation: ModuleType, descriptor: int, *, is_confined: bool) -> None:
    with suppress(ValueError, OSError):  # not every system lets a process limit its memory
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    if is_confined:
        computation.confine()
    for line in iter(_read_line, b""):
        first, second, seconds = json.loads(line)
        begin, on_error = time.process_time(), "lost"  # an error here is not one of the answer
        try:
            compare = computation.comparison(first, second)
            begin, on_error = time.process_time(), "failed"
            signal.setitimer(signal.ITIMER_PROF, seconds)
            outcome = "equal" if compare() else "different"
        except Exception:  # the input is hostile and may break anything
            outcome = on_error
        signal.setitimer(signal.ITIMER_PROF, 0)
        _send(descriptor, f"{outcome} {time.process_time() - begin:.4f}")
    os._exit(0)


def _read_line() -> bytes:
    # Unbuffered: a child that is killed must not take a part of the next request with it.
    line = b""
    while not line.endswith(b"\n"):
        piece = os.read(0, 4096)
        if not piece:
            return b""
        line += piece
    return line


def _send(descriptor: int, text: str) -> None:
    os.write(descriptor, f"{text}\n".encode())


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), is_confined="confined" in sys.argv[3:])
