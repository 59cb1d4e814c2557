"""Exit on signals: SIGTERM and Ctrl-C save a checkpoint after the step that is running.

A second Ctrl-C exits at once, without saving. The exit code is 128 + the signal's number, as a
shell has it: 143 after SIGTERM, 130 after Ctrl-C.
"""

import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

# A launcher repeats the Ctrl-C that the terminal has sent to all of its processes already.
ECHO_SECONDS = 1.0


class SignalExit(SystemExit):
    """Raised after a checkpoint was saved because of a signal."""

    def __init__(self, signum: int):
        super().__init__(128 + signum)
        self.signum = signum


class SignalHandler:
    """`with SignalHandler() as signals:` keeps SIGTERM and SIGINT from ending the process.

    `signals.signum` is the first that came, or 0. Off the main thread, where Python allows no
    handlers, it stays 0. `does` is printed: what happens before the process ends.
    """

    def __init__(self, does: str = "saving after this step, then exiting") -> None:
        self.does = does
        self.signum = 0
        self._since = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "SignalHandler":
        self.signum = 0
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGTERM, signal.SIGINT):
                self._before[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        self._before.clear()

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        again = bool(self.signum)
        if again and signum == signal.SIGINT and time.monotonic() - self._since > ECHO_SECONDS:
            _say("exiting at once; the last checkpoint is the newest that was saved")
            os._exit(128 + signal.SIGINT)
        if not again:
            self.signum, self._since = signum, time.monotonic()
            name = signal.Signals(signum).name
            _say(f"{name}: {self.does} (Ctrl-C: at once)")


def _say(text: str) -> None:
    # A handler may run in the middle of a print, which must not be entered twice.
    os.write(2, f"\n{text}\n".encode())
