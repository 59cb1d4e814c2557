"""Who may use the server: the API key, the name it is called by, and headers of every response."""

import base64
import binascii
import hmac
from http import HTTPStatus

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.serve.responses import error_json

OPEN_PATHS = ("/health",)
LOOPBACK = ("localhost", "127.0.0.1", "::1")
HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}


class AccessControl:
    """ASGI middleware that answers 401 without the key and 421 for a foreign host name.

    Browsers send the key as the password of HTTP basic authentication. A server on a loopback
    address without a key answers to the names of that address only: a web page whose name is made
    to resolve to it (DNS rebinding) is refused.
    """

    def __init__(self, app: ASGIApp, *, api_key: str | None, only_loopback: bool):
        self.app, self._key = app, None if api_key is None else api_key.encode()
        self._only_loopback = only_loopback

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request that is refused; hand on all others."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        refused = self._refusal(scope["path"], headers)
        await (refused or self.app)(scope, receive, send_with_headers)

    def _refusal(self, path: str, headers: Headers) -> JSONResponse | None:
        if self._only_loopback and host_name(headers.get("host", "")) not in LOOPBACK:
            message = "this server is for this machine only: call it localhost, or start it with "
            return _error(HTTPStatus.MISDIRECTED_REQUEST, message + "--host and an API key")
        if self._key is None or path in OPEN_PATHS or self._has_key(headers):
            return None
        response = _error(HTTPStatus.UNAUTHORIZED, "the API key is missing or wrong")
        response.headers["www-authenticate"] = 'Basic realm="API key as password", charset="UTF-8"'
        return response

    def _has_key(self, headers: Headers) -> bool:
        assert self._key is not None
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return hmac.compare_digest(given.strip().encode("latin-1"), self._key)
        if scheme.lower() != "basic":
            return False
        try:
            _, _, password = base64.b64decode(given, validate=True).partition(b":")
        except (binascii.Error, ValueError):
            return False
        return hmac.compare_digest(password, self._key)


def host_name(host: str) -> str:
    """The name of a Host header without its port.

    >>> host_name("localhost:8000"), host_name("[::1]:8000"), host_name("a.example")
    ('localhost', '::1', 'a.example')
    """
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower()


def _error(status: int, message: str) -> JSONResponse:
    return JSONResponse(error_json(status, message), status)
