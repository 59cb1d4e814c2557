"""How many requests run and wait; further ones are refused."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pipeline.serve.limits import Limits
from pipeline.serve.requests import RequestError


class Admission:
    """Places for running requests, first come first served, and a bounded queue before them."""

    def __init__(self, limits: Limits):
        self._limits = limits
        self._places = asyncio.Semaphore(limits.max_running)
        self.running = self.waiting = 0
        self.closed = False  # no further requests: the server stops

    def check(self) -> None:
        """Raise RequestError if a further request would neither run nor wait."""
        if self.closed:
            raise RequestError("the server stops: try another one", status=503)
        if self.waiting >= self._limits.max_waiting:
            raise RequestError(
                f"{self.running} requests run and {self.waiting} wait: try again later", status=429
            )

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Wait for a place, and hold it inside the context.

        Raises:
            RequestError: the queue is full, or the server stops.
        """
        self.check()
        self.waiting += 1
        try:
            await self._places.acquire()
        finally:
            self.waiting -= 1
        self.running += 1
        try:
            if self.closed:
                raise RequestError("the server stops: try another one", status=503)
            yield
        finally:
            self.running -= 1
            self._places.release()
