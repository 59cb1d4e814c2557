"""The routes of the server as a Starlette application."""

import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from pipeline.model import has_value_head
from pipeline.search import STRATEGIES
from pipeline.serve.access import AccessControl
from pipeline.serve.admission import Admission
from pipeline.serve.answering import Answering
from pipeline.serve.exchange import ChatExchange, Service
from pipeline.serve.limits import Limits
from pipeline.serve.metrics import CONTENT_TYPE, Metrics
from pipeline.serve.page import PAGE_HEADERS, page
from pipeline.serve.responses import error_json


def make_service(
    answering: Answering, limits: Limits, *, model_name: str, show_reasoning: bool = False
) -> Service:
    """The shared state of a server; its decode loop is started by the application."""
    return Service(
        answering=answering,
        limits=limits,
        admission=Admission(limits),
        metrics=Metrics(),
        pool=ThreadPoolExecutor(limits.max_running, thread_name_prefix="request"),
        model_name=model_name,
        show_reasoning=show_reasoning,
    )


def make_app(service: Service, *, api_key: str | None = None, local: bool = True) -> Starlette:
    """The application. `local`: without a key only callers that use a loopback name are served."""
    routes = _Routes(service)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        service.answering.loop.start()
        try:
            yield
        finally:
            service.admission.closed = True
            service.answering.loop.stop()
            service.pool.shutdown(wait=True, cancel_futures=True)

    return Starlette(
        routes=[
            Route("/", routes.index),
            Route("/health", routes.health),
            Route("/metrics", routes.metrics),
            Route("/v1/models", routes.models),
            Route("/v1/models/{name:path}", routes.model),
            Route("/v1/chat/completions", routes.chat, methods=["POST"]),
        ],
        middleware=[
            Middleware(AccessControl, api_key=api_key, only_loopback=local and api_key is None)
        ],
        exception_handlers={HTTPException: _http_error},  # type: ignore[dict-item]  # its subtype
        lifespan=lifespan,
    )


class _Routes:
    """The endpoints over one service."""

    def __init__(self, service: Service):
        self.service, self.created = service, int(time.time())
        self.page = page(
            model=service.model_name,
            show_reasoning=service.show_reasoning,
            strategies=[
                name
                for name in STRATEGIES
                if has_value_head(service.answering.model)
                or name in ("greedy", "sample", "consensus", "likelihood", "adaptive")
            ],
            strategy=service.answering.strategy,
        )

    async def index(self, request: Request) -> HTMLResponse:
        return HTMLResponse(self.page, headers=PAGE_HEADERS)

    async def health(self, request: Request) -> JSONResponse:
        if self.service.admission.closed:
            return JSONResponse({"status": "stopping"}, 503)
        if not self.service.answering.loop.alive:
            return JSONResponse({"status": "the decode loop has ended: restart the server"}, 503)
        return JSONResponse({"status": "ok"})

    async def metrics(self, request: Request) -> PlainTextResponse:
        admission, loop = self.service.admission, self.service.answering.loop
        gauges = {
            "requests_running": admission.running,
            "requests_waiting": admission.waiting,
            "batch_rows": len(loop.batch.rows),
        }
        counters = {
            "decode_steps_total": loop.steps,
            "decoded_tokens_total": loop.decoded_rows,
            "model_failures_total": loop.failures,
        }
        text = self.service.metrics.text(gauges, counters)
        return PlainTextResponse(text, headers={"content-type": CONTENT_TYPE})

    async def models(self, request: Request) -> JSONResponse:
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> JSONResponse:
        if request.path_params["name"] != self.service.model_name:
            raise HTTPException(404, f"this server has only the model {self.service.model_name!r}")
        return JSONResponse(self._model())

    async def chat(self, request: Request) -> "_Handled":
        return _Handled(self.service)

    def _model(self) -> dict[str, str | int | None]:
        model = self.service.answering.model
        return {
            "id": self.service.model_name,
            "object": "model",
            "created": self.created,
            "owned_by": "thinkhead",
            "max_model_len": getattr(model.config, "max_position_embeddings", None),
        }


class _Handled(JSONResponse):
    """The response of a chat completion, which sends itself."""

    def __init__(self, service: Service):
        super().__init__(None)
        self.service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await ChatExchange(self.service)(scope, receive, send)


async def _http_error(request: Request, error: HTTPException) -> JSONResponse:
    return JSONResponse(
        error_json(error.status_code, error.detail), error.status_code, headers=error.headers
    )
