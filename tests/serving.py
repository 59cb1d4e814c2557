"""A server in a thread of this process, for the tests of the server."""

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import uvicorn

from pipeline.search import SearchOptions
from pipeline.serve.answering import Answering
from pipeline.serve.app import make_app, make_service
from pipeline.serve.decode_loop import DecodeLoop
from pipeline.serve.exchange import Service
from pipeline.serve.limits import Limits
from pipeline.serve.protocol import GracefulServer, timed_protocol

KEY = "key-of-the-tests-0123456789"


@dataclass
class Running:
    """A server that runs, and a client of it."""

    url: str
    port: int
    service: Service
    server: GracefulServer
    client: httpx.Client
    events: list[asyncio.AbstractEventLoop]  # the server's

    def tasks(self) -> int:
        """How many asyncio tasks the server has."""
        return len(asyncio.all_tasks(self.events[0]))

    def chat(self, question: str = "1+1?", **fields: object) -> httpx.Response:
        """The response to one question."""
        messages = [{"role": "user", "content": question}]
        return self.client.post("/v1/chat/completions", json={"messages": messages, **fields})

    def text(self, question: str = "1+1?", **fields: object) -> str:
        """The visible answer to one question."""
        response = self.chat(question, **fields)
        assert response.status_code == 200, response.text
        return response.json()["choices"][0]["message"]["content"]

    def idle(self, seconds: float = 20.0) -> bool:
        """Whether the server has nothing left to do within that time."""
        end = time.monotonic() + seconds
        loop, admission = self.service.answering.loop, self.service.admission
        while time.monotonic() < end:
            if not (loop.batch.rows or admission.running or admission.waiting):
                return True
            time.sleep(0.01)
        return False

    def raw(self) -> socket.socket:
        """A connection without any client library."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)


@contextlib.contextmanager
def served(
    model,
    tokenizer,
    *,
    options: SearchOptions | None = None,
    strategy: str = "greedy",
    api_key: str | None = None,
    show_reasoning: bool = False,
    **limits: float,
) -> Iterator[Running]:
    """A server of this model on a free port; it is stopped at the end."""
    bounds = Limits(**{"stop_seconds": 2.0, **limits})
    answering = Answering(
        model,
        tokenizer,
        DecodeLoop(model, max_rows=bounds.max_rows),
        options=options or SearchOptions(max_sample_tokens=40, answer_tokens=4),
        strategy=strategy,
        token_limit=bounds.token_limit,
        prompt_limit=bounds.prompt_limit,
    )
    service = make_service(answering, bounds, model_name="tiny", show_reasoning=show_reasoning)
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    config = uvicorn.Config(
        make_app(service, api_key=api_key),
        http=timed_protocol(bounds.read_seconds),
        ws="none",
        access_log=False,
        server_header=False,
        log_config=None,
        timeout_graceful_shutdown=int(bounds.stop_seconds),
    )
    server = GracefulServer(
        config,
        on_start=lambda: None,
        on_stop=lambda: None,
        works=lambda: answering.loop.alive,
    )
    events: list[asyncio.AbstractEventLoop] = []

    async def run() -> None:
        events.append(asyncio.get_running_loop())
        await server.serve([listener])

    thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.005)
    headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
    url = f"http://127.0.0.1:{port}"
    client = httpx.Client(base_url=url, headers=headers, timeout=60)
    try:
        yield Running(url, port, service, server, client, events)
    finally:
        client.close()
        server.should_exit = True
        thread.join(10)
    assert not thread.is_alive(), "the server did not stop"
