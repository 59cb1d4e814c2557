"""How long to wait for a process, without a verdict that depends on how busy the machine is.

A clock cannot tell a program that sleeps from one that waits for a processor. The kernel can: the
first is in state S, the second in state R. So a process is looked at every POLL_SECONDS while it
has nothing to say, and ended once it was asleep for `Limits.asleep_seconds`. What it computes is
limited by `Limits.seconds` of processor time. `Limits.wall_seconds` of the clock are only there for
a machine that gives it no processor at all; what ends so has no verdict.
"""

import selectors
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.sandbox.launch import Limits

POLL_SECONDS = 0.1
ASLEEP = frozenset("STt")  # sleeping, and stopped, which a program can do to itself
NO_VERDICT, SLEPT = "no verdict", "asleep"


class Patience:
    """Waits for a process and all below it.

    `ended` is "" as long as there is patience left, then "asleep" or "no verdict".
    """

    def __init__(self, pid: int, limits: "Limits"):
        self.pid = pid
        self.asleep_seconds = limits.asleep_seconds
        self.deadline = time.monotonic() + limits.wall_seconds
        self.asleep = 0.0
        self.ended = ""
        self._before: tuple[int, ...] | None = None

    def select(self, ready: selectors.BaseSelector) -> list:
        """The next events, or [] where patience has run out."""
        self._before = None
        while not self.ended:
            begin = time.monotonic()
            events = ready.select(max(0.0, min(POLL_SECONDS, self.deadline - begin)))
            if events:
                return events
            self._look(time.monotonic() - begin)
        return []

    def wait(self, process: subprocess.Popen) -> int | None:
        """The exit code of the process, or None where patience has run out."""
        self._before = None
        while not self.ended:
            begin = time.monotonic()
            try:
                return process.wait(POLL_SECONDS)
            except subprocess.TimeoutExpired:
                self._look(time.monotonic() - begin)
        return None

    def _look(self, seconds: float) -> None:
        """Charge what the process slept out of the last `seconds`, in which it said nothing.

        Between two looks that find it in the same sleep, all of them; where it woke up in between
        it may have waited for a processor for most of them.
        """
        switches = _sleep(self.pid)
        if switches is not None:
            same = switches == self._before
            self.asleep += seconds if same else min(seconds, POLL_SECONDS)
        self._before = switches
        if self.asleep >= self.asleep_seconds:
            self.ended = SLEPT
        elif time.monotonic() >= self.deadline:
            self.ended = NO_VERDICT


def _sleep(pid: int) -> tuple[int, ...] | None:
    """How often each thread below a process has gone to sleep so far; None where one is awake, or
    where the system does not tell."""
    counts = []
    try:
        for task in sorted(Path(f"/proc/{pid}/task").iterdir()):
            status = (task / "status").read_text()
            state = status.partition("State:")[2].split(maxsplit=1)[0]
            if state not in ASLEEP:
                return None
            counts.append(int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0]))
            for child in (task / "children").read_text().split():
                below = _sleep(int(child))
                if below is None:
                    return None
                counts += below
    except (OSError, ValueError, IndexError):
        return None
    return tuple(counts)
