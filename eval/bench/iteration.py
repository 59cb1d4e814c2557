"""The clock inside a contender: it waits for its turn, times the work, and reports in JSON.

Imports nothing but the standard library and, on a GPU, torch, so that a peer's own environment can
run it.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

STOP = "stop"


class Iterations:
    """Turns that the race gives: `begin()` waits for one, `end(...)` reports it."""

    def __init__(self) -> None:
        # What libraries print must not mix with the reports.
        self.report = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)
        self.mode = ""
        self.seconds: dict[str, float] = {}

    def begin(self) -> None:
        """Wait for a turn; the process ends when there are no more."""
        self._send({"waiting": True})
        self.mode = sys.stdin.readline().strip()
        if self.mode in ("", STOP):
            raise SystemExit(0)
        _forget_peak_memory()
        _settle()
        self.seconds = {}
        self.started = (time.perf_counter(), time.process_time())

    def end(self, **figures: Any) -> None:
        """Report the time since `begin`, the peak memory, and what was done."""
        _settle()
        wall, cpu = time.perf_counter(), time.process_time()
        self._send(
            {
                "mode": self.mode,
                "wall_s": wall - self.started[0],
                "cpu_s": cpu - self.started[1],
                "peak_mib": peak_memory(),
                **{f"{name}_s": seconds for name, seconds in self.seconds.items()},
                **figures,
            }
        )
        if _gpu() is not None:
            _gpu().empty_cache()  # the contenders share the GPU

    def timed(self, owner: Any, name: str, label: str) -> None:
        """From now on the time spent in `owner.name` is reported as `label`: processor time, on a
        GPU the time on the clock."""
        inner = getattr(owner, name)

        def outer(*args: Any, **kwargs: Any) -> Any:
            start = _seconds()
            try:
                return inner(*args, **kwargs)
            finally:
                spent = _seconds() - start
                self.seconds[label] = self.seconds.get(label, 0.0) + spent

        setattr(owner, name, outer)

    def _send(self, content: dict[str, Any]) -> None:
        self.report.write(json.dumps(content) + "\n")
        self.report.flush()


def _gpu() -> Any:
    """torch.cuda where this process uses a GPU, else None."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None


def _settle() -> None:
    """Wait until the GPU has done what it was asked for."""
    if _gpu() is not None:
        _gpu().synchronize()


def _seconds() -> float:
    if _gpu() is None:
        return time.process_time()
    _settle()
    return time.perf_counter()


def peak_memory() -> float:
    """Peak memory in MiB since `begin`: what torch held on the GPU, else the resident memory of
    this process, where the system can tell."""
    if _gpu() is not None:
        return _gpu().max_memory_allocated() / (1 << 20)
    status = Path("/proc/self/status")
    if status.exists():
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def _forget_peak_memory() -> None:
    if _gpu() is not None:
        _gpu().reset_peak_memory_stats()
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")


def reward_of(task: dict[str, Any]) -> Callable[[str, str], float]:
    """The reward of every contender, a function of a completion and the expected answer."""
    return right if task["reward"] == "right" else lambda text, answer: digits(text)


def right(text: str, answer: str) -> float:
    """1.0 where the expected whole number stands behind the thought, alone.

    >>> right("1+1=2</think>2", "2"), right("2", "2"), right("1+1=2</think>2 or 3", "2")
    (1.0, 0.0, 0.0)
    """
    _, closed, visible = text.partition("</think>")
    return float(bool(closed) and visible.strip() == answer)


def digits(text: str) -> float:
    """The share of digits in a completion.

    >>> digits("a1b2")
    0.5
    """
    return sum(map(str.isdigit, text)) / max(1, len(text))


def read_task() -> dict[str, Any]:
    """What to do, as the race wrote it: the only argument names the file."""
    return json.loads(Path(sys.argv[1]).read_text())
