"""Progress of a long task: one bar in a terminal, one line a tenth of the way in a file.

    with Progress(600, "nano greedy", unit="q") as progress:
        progress.advance(1)

Code that finishes sequences deep inside a task reports them with `sequence_finished`; whoever shows
progress counts them with `count_sequences`.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType

from tqdm import tqdm

SECONDS_PER_LINE = 30.0  # in a file, a slow task prints a line at least that often
SECONDS_BETWEEN_LINES = 2.0  # and a fast one at most that often
_listener: ContextVar[Callable[[], None] | None] = ContextVar("listener", default=None)


class Progress:
    """Counts to `total` and shows rate and remaining time on stderr.

    Args:
        total: number of units of the whole task
        label: name of the task
        unit: of the count, such as "q" for questions
        initial: units that an earlier run has finished
        lines: whether to print lines where stderr is no terminal
    """

    def __init__(
        self, total: int, label: str, *, unit: str, initial: int = 0, lines: bool = True
    ) -> None:
        self.total, self.label, self.unit, self.lines = total, label, unit, lines
        self.done, self._initial = initial, initial
        self._bar: tqdm | None = None
        if sys.stderr.isatty():
            self._bar = tqdm(
                total=total, desc=label, unit=f" {unit}", initial=initial, dynamic_ncols=True
            )
        self._begin = self._said_at = time.monotonic()
        self._said = initial

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def advance(self, count: int) -> None:
        """Count further units."""
        self.reach(self.done + count)

    def reach(self, done: int) -> None:
        """Set the number of finished units, which never falls."""
        step, self.done = max(0, done - self.done), max(done, self.done)
        if self._bar is not None:
            self._bar.update(step)
            return
        now = time.monotonic()
        waited = now - self._said_at
        tenth = self.done * 10 // max(1, self.total) > self._said * 10 // max(1, self.total)
        due = tenth and (waited >= SECONDS_BETWEEN_LINES or self.done >= self.total)
        if self.lines and step and (due or waited > SECONDS_PER_LINE):
            self._said, self._said_at = self.done, now
            print(self.line(), file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        """Show a text at the end of the bar."""
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)

    def write(self, line: str) -> None:
        """Print a line to stdout, above the bar; in a file with the remaining time."""
        if self._bar is None:
            print(f"{line}{self._left()}", flush=True)
        else:
            tqdm.write(line)

    def line(self) -> str:
        """Count, rate and remaining time as one line."""
        rate = (self.done - self._initial) / max(1e-9, time.monotonic() - self._begin)
        return (
            f"{self.label}: {self.done:,}/{self.total:,} {self.unit}, "
            f"{rate:.3g} {self.unit}/s{self._left()}"
        )

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()

    def _left(self) -> str:
        made = self.done - self._initial
        if not made or self.done >= self.total:
            return ""
        seconds = (time.monotonic() - self._begin) / made * (self.total - self.done)
        return f", {format_duration(seconds)} left"


@contextmanager
def count_sequences(finished: Callable[[], None]) -> Iterator[None]:
    """Call `finished` for every sequence that the code inside the context completes."""
    token = _listener.set(finished)
    try:
        yield
    finally:
        _listener.reset(token)


def sequence_finished() -> None:
    """Report one completed sequence to `count_sequences`, if anyone counts."""
    listener = _listener.get()
    if listener is not None:
        listener()


def format_duration(seconds: float) -> str:
    """Minutes and seconds as text.

    >>> format_duration(7.4), format_duration(200.2), format_duration(7320)
    ('7 s', '3 min 20 s', '2 h 02 min')
    """
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
