"""Wait for a process, so that the result does not depend on the load of the machine.

Wall-clock time does not distinguish a program that sleeps from one that waits for a processor. The
kernel does: the first is in state S, the second in state R. So the state of the process is read
every POLL_SECONDS while it writes nothing, and it is ended once it slept for
`Limits.asleep_seconds`. Its computation is limited by `Limits.seconds` of processor time. After
`Limits.wall_seconds` of wall-clock time the machine gives it no processor: there is no verdict.
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


class ProcessWaiter:
    """Waits for a process and all its descendants.

    `ended` is "" until a limit is reached, then "asleep" or "no verdict".
    """

    def __init__(self, pid: int, limits: "Limits"):
        self.pid = pid
        self.asleep_seconds = limits.asleep_seconds
        self.deadline = time.monotonic() + limits.wall_seconds
        self.asleep = 0.0
        self.ended = ""
        self._before: tuple[int, ...] | None = None

    def select(self, ready: selectors.BaseSelector) -> list:
        """The next events, or [] where a limit is reached."""
        self._before = None
        while not self.ended:
            begin = time.monotonic()
            events = ready.select(max(0.0, min(POLL_SECONDS, self.deadline - begin)))
            if events:
                return events
            self._count_sleep(time.monotonic() - begin)
        return []

    def wait(self, process: subprocess.Popen[bytes]) -> int | None:
        """The exit code of the process, or None where a limit is reached."""
        self._before = None
        while not self.ended:
            begin = time.monotonic()
            try:
                return process.wait(POLL_SECONDS)
            except subprocess.TimeoutExpired:
                self._count_sleep(time.monotonic() - begin)
        return None

    def _count_sleep(self, seconds: float) -> None:
        """Add the time that the process slept in the last `seconds`, in which it wrote nothing.

        All of them where it is in the same sleep as before. Where it woke up in between, at most
        POLL_SECONDS: it may have waited for a processor for the rest.
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
    """The number of sleeps so far of each thread of a process and its descendants; None where one
    is awake, or where the system does not say."""
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
