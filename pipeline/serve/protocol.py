"""uvicorn's HTTP protocol with a time limit for headers, and a server that stops gracefully."""

import asyncio
import signal
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol


def timed_protocol(seconds: float) -> type[H11Protocol]:
    """The protocol, for connections that have to send a request's headers within that time.

    uvicorn itself limits only the time between two requests of a connection.
    """

    class TimedProtocol(H11Protocol):
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_timer()
            super().connection_lost(exc)

        def _watch(self) -> None:
            if self._busy():
                self._stop_timer()
            elif self._timer is None:
                self._timer = self.loop.call_later(seconds, self._close)

        def _busy(self) -> bool:
            return self.cycle is not None and not self.cycle.response_complete

        def _close(self) -> None:
            self._timer = None
            if not self._busy() and not self.transport.is_closing():
                self.transport.close()

        def _stop_timer(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    return TimedProtocol


class GracefulServer(uvicorn.Server):
    """A server that calls `on_start` once it listens, `on_stop` at SIGINT and SIGTERM, and `works`
    once a second.

    Attributes:
        failed: the server has stopped because `works` was false.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        *,
        on_start: Callable[[], None],
        on_stop: Callable[[], None],
        works: Callable[[], bool],
    ):
        super().__init__(config)
        self._on_start, self._on_stop, self._works = on_start, on_stop, works
        self.failed = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then say so."""
        await super().startup(sockets=sockets)
        if self.started:
            self._on_start()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Refuse further requests and let the running ones finish; a second Ctrl-C ends at once."""
        self._on_stop()
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        self.should_exit = True

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second: whether to stop."""
        if counter % 10 == 0 and not self.should_exit and not self._works():
            self.failed = True
            return True
        return await super().on_tick(counter)
