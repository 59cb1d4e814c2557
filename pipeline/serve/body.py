"""Read the body of a request, within a size and a time."""

import asyncio

from starlette.requests import ClientDisconnect, Request

from pipeline.serve.limits import Limits
from pipeline.serve.requests import RequestError


async def read_body(request: Request, limits: Limits) -> bytes:
    """The body of a JSON request.

    Raises:
        RequestError: it is no JSON by its header, too large, or comes too slowly.
        ClientDisconnect: the client has gone.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        # A form could be sent by any web page that is open in a browser on this machine.
        raise RequestError(
            "send the header Content-Type: application/json (curl -H 'Content-Type: "
            "application/json')",
            status=415,
        )
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > limits.max_body_bytes:
        raise _too_large(limits)
    try:
        return await asyncio.wait_for(_read(request, limits), limits.read_seconds)
    except TimeoutError:
        raise RequestError(
            f"the body did not arrive within {limits.read_seconds:g} s", status=408
        ) from None


async def _read(request: Request, limits: Limits) -> bytes:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > limits.max_body_bytes:
            raise _too_large(limits)
        parts.append(part)
    return b"".join(parts)


def _too_large(limits: Limits) -> RequestError:
    return RequestError(f"the body has more than {limits.max_body_bytes} bytes", status=413)


__all__ = ["ClientDisconnect", "read_body"]
