"""One chat completion over HTTP: its place, its thread, and its response, streamed or not."""

import asyncio
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from pipeline.serve.admission import Admission
from pipeline.serve.answering import Answering, Completion, Plan
from pipeline.serve.body import ClientDisconnect, read_body
from pipeline.serve.decode_loop import Cancelled, DecodingFailed
from pipeline.serve.failures import place_of
from pipeline.serve.limits import Limits
from pipeline.serve.metrics import Metrics
from pipeline.serve.requests import RequestError, parse_chat_request
from pipeline.serve.responses import KEEP_ALIVE, STREAM_END, ResponseHead, error_json, event
from pipeline.serve.text_stream import TextDelta

logger = logging.getLogger("thinkhead.serve")
KEEP_ALIVE_SECONDS = 10.0  # between two comments of a stream that has nothing to send
CLIENT_GONE = 499  # as nginx logs it; nobody receives it
HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8")]
DONE = "done"
# What a stream waits for: (index of the choice, token id), or the end of the work.
Item = tuple[int, int] | str


@dataclass(frozen=True, kw_only=True)
class Service:
    """What all exchanges share."""

    answering: Answering
    limits: Limits
    admission: Admission
    metrics: Metrics
    pool: ThreadPoolExecutor
    model_name: str
    show_reasoning: bool


class ChatExchange:
    """Answers one POST to /v1/chat/completions; an ASGI application."""

    def __init__(self, service: Service):
        self.service = service
        self.cancelled = threading.Event()
        self.started = self.finished = False  # the status, and all of the response, is sent
        self.begin = time.monotonic()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the request and send its response, whatever happens."""
        completion: Completion | None = None
        status, message, param = 200, "", None
        try:
            completion = await self._answer(Request(scope, receive), send)
        except RequestError as error:
            status, message, param = error.status, error.message, error.param
        except (ClientDisconnect, _ClientGone):
            status = CLIENT_GONE
        except TimeoutError:
            seconds = self.service.limits.request_seconds
            status, message = 503, f"the request took longer than {seconds:g} s"
        except Cancelled:
            status, message = 503, "the server stops: try another one"
        except DecodingFailed as error:
            status, message = 500, str(error)
        except Exception as error:
            status, message = 500, "the server failed to answer; its log has the place"
            logger.error("chat completion failed with %s", place_of(error))
        self._record(status, completion)
        if message:
            await self._send_error(status, message, param, scope, receive, send)

    async def _answer(self, request: Request, send: Send) -> Completion:
        service = self.service
        service.admission.check()
        chat = parse_chat_request(await read_body(request, service.limits), service.limits)
        plan = service.answering.plan(chat)
        if chat.model not in (None, service.model_name):
            raise RequestError(
                f"there is no model {chat.model!r}; this server has {service.model_name!r}",
                status=404,
                param="model",
            )
        if chat.return_tree and not service.show_reasoning:
            raise RequestError(
                "return_tree shows thoughts: the server must be started with --show_reasoning true",
                param="return_tree",
            )
        left = asyncio.create_task(_disconnect(request))
        try:
            async with asyncio.timeout(service.limits.request_seconds):
                waiting = asyncio.create_task(self._with_place(plan, left, send))
                try:
                    await asyncio.wait({waiting, left}, return_when=asyncio.FIRST_COMPLETED)
                    # The server reports a finished response as a disconnect, too.
                    if left.done() and not self.finished:
                        raise _ClientGone
                    return await waiting
                finally:
                    await self._end(waiting)
        finally:
            left.cancel()

    async def _end(self, task: asyncio.Task[Completion]) -> None:
        """Stop the work of a request; its thread ends at the next token."""
        if not task.done():
            self.cancelled.set()
            self.service.answering.loop.wake()
            task.cancel()
            await asyncio.wait({task})

    async def _with_place(self, plan: Plan, left: asyncio.Task[None], send: Send) -> Completion:
        async with self.service.admission.place():
            items: asyncio.Queue[Item] = asyncio.Queue()
            loop = asyncio.get_running_loop()

            def hear(choice: int, token: int) -> None:
                loop.call_soon_threadsafe(items.put_nowait, (choice, token))

            streaming = plan.request.stream
            listener = hear if streaming and plan.streams else None
            work = loop.run_in_executor(
                self.service.pool, self.service.answering.run, plan, self.cancelled, listener
            )
            try:
                head = ResponseHead(
                    self.service.model_name, show_reasoning=self.service.show_reasoning
                )
                if not streaming:
                    completion = await asyncio.shield(work)
                    await self._send_json(head, completion, send)
                    return completion
                work.add_done_callback(lambda _: items.put_nowait(DONE))
                await self._stream(plan, head, items, work, send)
                return await work
            finally:
                if not work.done():
                    self.cancelled.set()
                    self.service.answering.loop.wake()
                    await asyncio.wait({work})  # the place is free once the thread is
                if not work.cancelled():
                    work.exception()  # seen, also where nobody waits for it any more

    async def _stream(
        self,
        plan: Plan,
        head: ResponseHead,
        items: asyncio.Queue[Item],
        work: asyncio.Future[Completion],
        send: Send,
    ) -> None:
        """Send the chunks of an answer as they become certain."""
        answering, request = self.service.answering, plan.request
        batch = await self._next_items(items)
        if work.done() and work.exception() is not None:
            return  # nothing has been sent: the error gets a status of its own
        await self._start(send, 200, HEADERS)
        await _send_body(send, b"".join(event(head.first_chunk(i)) for i in range(request.n)))
        streams = [answering.text_stream(plan) for _ in range(request.n)]
        if batch and batch[0] != DONE:
            self.service.metrics.first_token(time.monotonic() - self.begin)
        while True:
            if not batch:
                await _send_body(send, KEEP_ALIVE)
            chunks = []
            for item in batch:
                if isinstance(item, tuple):
                    i, token = item
                    chunks.append(head.delta_chunk(i, streams[i].feed(token)))
            await _send_body(send, b"".join(event(chunk) for chunk in chunks if chunk))
            if DONE in batch:
                break
            batch = await self._next_items(items)
        if work.exception() is not None:
            return
        completion = work.result()
        for i, stream in enumerate(streams):
            delta = stream.finish()
            if not plan.streams:
                choice = completion.choices[i]
                delta = TextDelta(visible=choice.text, thought=choice.thought)
            if chunk := head.delta_chunk(i, delta):
                await _send_body(send, event(chunk))
        last = head.last_chunks(completion, include_usage=request.include_usage)
        self.finished = True
        await _send_body(send, b"".join(map(event, last)) + STREAM_END, more=False)

    async def _next_items(self, items: asyncio.Queue[Item]) -> list[Item]:
        """All items that are there, at least one; none after `KEEP_ALIVE_SECONDS` without any."""
        try:
            async with asyncio.timeout(KEEP_ALIVE_SECONDS):
                found = [await items.get()]
        except TimeoutError:
            return []
        while not items.empty():
            found.append(items.get_nowait())
        return found

    async def _send_json(self, head: ResponseHead, completion: Completion, send: Send) -> None:
        response = JSONResponse(head.completion(completion))
        await self._start(send, 200, response.raw_headers)
        self.finished = True
        await _send_body(send, bytes(response.body), more=False)

    async def _start(self, send: Send, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.started = True
        await send({"type": "http.response.start", "status": status, "headers": headers})

    async def _send_error(
        self,
        status: int,
        message: str,
        param: str | None,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        """The error as a response, or as the last event of a stream that has begun."""
        if self.started:
            last = event(error_json(status, message, param)) + STREAM_END
            await _send_body(send, last, more=False)
            return
        response = JSONResponse(error_json(status, message, param), status)
        if status in (429, 503):
            response.headers["retry-after"] = "1"
        if status in (408, 413):  # the rest of the body is not read
            response.headers["connection"] = "close"
        await response(scope, receive, send)

    def _record(self, status: int, completion: Completion | None) -> None:
        """Count the request and log it in one line, without any text of it."""
        seconds = time.monotonic() - self.begin
        usage = None if completion is None else completion.usage
        self.service.metrics.finished(status, seconds, usage)
        tokens = ""
        if usage is not None:
            tokens = (
                f", {usage.prompt_tokens} prompt + {usage.reasoning_tokens} reasoning + "
                f"{usage.visible_tokens} visible tokens"
            )
        logger.info("chat completion: status %d, %.2f s%s", status, seconds, tokens)


class _ClientGone(Exception):  # noqa: N818
    """The client has closed its connection."""


async def _disconnect(request: Request) -> None:
    """Return when the client has gone; the body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _send_body(send: Send, body: bytes, *, more: bool = True) -> None:
    if body or not more:
        await send({"type": "http.response.body", "body": body, "more_body": more})
