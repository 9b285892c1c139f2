"""The rim of the service: what holds for every answer, whoever gives it (our routes, BentoML's, a fault in either).

Request id, model name and caching headers; API key and quota; one shape for every refusal; an unread body thrown away
so that clients see their answer; an answer that its client does not take dropped; what a request holds of the memory
given back when it is over; one line of log and one count for each request.
"""

import asyncio
import hmac
import json
import logging
import re
import secrets
import time
from contextlib import ExitStack
from dataclasses import dataclass, field

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ptsa_serve.errors import (
    BadMultipart,
    BadParameter,
    DeadlineExceeded,
    Internal,
    MethodNotAllowed,
    NotFound,
    NotReady,
    RequestError,
    TooLarge,
    Unauthorized,
    UnsupportedMediaType,
)
from ptsa_serve.http import problems
from ptsa_serve.http.answers import SLICE
from ptsa_serve.http.metrics import route_of
from ptsa_serve.http.runtime import Runtime
from ptsa_serve.http.target import normalize

__all__ = ["Edge"]

log = logging.getLogger(__name__)
access = logging.getLogger("ptsa_serve.access")

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

# How much of an unwanted body is read and thrown away before the refusal is sent: clients that send first and listen
# later (urllib, aiohttp) lose the answer otherwise.
_DRAIN_BYTES = 64 * 1024 * 1024
_DRAIN_SECONDS = 2.0

# Answers of others (BentoML, Starlette) that are not problem details, by status.
_FOREIGN: dict[int, RequestError] = {
    400: BadMultipart("the request does not parse; see /problems/bad-multipart"),
    404: NotFound("there is nothing under this path; photos go to POST /v1/predict"),
    413: TooLarge("the body is over the limit; send a smaller photo"),
    415: UnsupportedMediaType("this Content-Type can hold no photo; send image/* or multipart/form-data"),
    504: DeadlineExceeded("the server's own time limit passed; try again later"),
}
_OPEN_ROUTES = ("/", "/livez", "/readyz", "/healthz", "/metrics", "/problems/{code}", "/ui", "other")
_PHOTO_ROUTES = ("/predict", "/v1/predict", "/v1/predict/{task}")
_QUIET_ROUTES = ("/livez", "/readyz", "/healthz", "/metrics")


class _NotTakenError(Exception):
    """The client has not taken a slice of its answer in time."""


@dataclass(slots=True)
class _Exchange:
    """One request and what becomes of it."""

    request_id: str
    route: str
    method: str
    headers: Headers
    started: float = field(default_factory=time.monotonic)
    status: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    asked_for_body: bool = False
    body_ended: bool = False
    gone: bool = False
    replacing: bytes | None = None


class Edge:
    """ASGI middleware around the whole service; see the module's text."""

    def __init__(self, app: ASGIApp, runtime: Runtime) -> None:
        self.app = app
        self.runtime = runtime

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        normalize(scope)
        exchange = _open(scope)
        held = ExitStack()
        scope.setdefault("state", {}).update(request_id=exchange.request_id, arrived=exchange.started, held=held)

        async def counted_receive() -> Message:
            return await _receive(exchange, receive)

        async def finished_send(message: Message) -> None:
            await self._send(exchange, message, receive, send)

        try:
            self._admit(scope, exchange)
            await self.app(scope, counted_receive, finished_send)
        except RequestError as error:
            await self._refuse(exchange, error, scope, counted_receive, finished_send)
        except Exception as error:
            if not exchange.gone:
                log.exception("request %s failed", exchange.request_id)
            await self._refuse(exchange, error, scope, counted_receive, finished_send)
        finally:
            held.close()
            self._record(exchange)

    def _admit(self, scope: Scope, exchange: _Exchange) -> None:
        if exchange.route in _OPEN_ROUTES:
            return
        key = self.runtime.settings.api_key
        sent = _sent_key(exchange.headers)
        if key and not hmac.compare_digest(sent.encode(), key.get_secret_value().encode()):
            found = "another API key" if sent else "no API key"
            raise Unauthorized(f"the request has {found}; send Authorization: Bearer KEY, or X-API-Key: KEY")
        infers = exchange.route in _PHOTO_ROUTES or scope["path"].endswith("/infer")
        if self.runtime.quota and infers and scope["method"] == "POST":
            client = scope.get("client")
            self.runtime.quota.take(client[0] if client else "local")

    async def _refuse(self, exchange: _Exchange, error: Exception, scope: Scope, receive: Receive, send: Send) -> None:
        if exchange.status or exchange.gone:
            return
        await problems.problem_response(error, exchange.request_id)(scope, receive, send)

    async def _send(self, exchange: _Exchange, message: Message, receive: Receive, send: Send) -> None:
        if message["type"] == "http.response.start":
            await self._start(exchange, message, receive, send)
        elif exchange.replacing is None:
            await self._send_body(exchange, message.get("body", b""), message.get("more_body", False), send)
        elif not message.get("more_body", False):
            await self._send_body(exchange, exchange.replacing, False, send)

    async def _send_body(self, exchange: _Exchange, body: bytes | memoryview, more: bool, send: Send) -> None:
        view = memoryview(body).cast("B") if body else memoryview(b"")
        for start in range(0, max(len(view), 1), SLICE):
            part = body if isinstance(body, bytes) and len(body) <= SLICE else bytes(view[start : start + SLICE])
            rest = more or start + SLICE < len(view)
            try:
                async with asyncio.timeout(self.runtime.settings.send_timeout_ms / 1000):
                    await send({"type": "http.response.body", "body": part, "more_body": rest})
            except TimeoutError:
                exchange.gone = True
                raise _NotTakenError from None
            exchange.bytes_out += len(part)

    async def _start(self, exchange: _Exchange, message: Message, receive: Receive, send: Send) -> None:
        exchange.status = message["status"]
        message.setdefault("headers", [])
        headers = MutableHeaders(raw=message["headers"])
        if exchange.status >= 400 and headers.get("content-type") != problems.MEDIA_TYPE:
            error = _foreign(exchange.status, exchange.method, headers)
            exchange.replacing = json.dumps(problems.problem(error, exchange.request_id)).encode()
            exchange.status = message["status"] = error.status
            headers["content-type"] = problems.MEDIA_TYPE
            headers["content-length"] = str(len(exchange.replacing))
            headers.update(error.headers)
        headers["X-Request-Id"] = exchange.request_id
        if self.runtime.model:
            headers["X-Model"] = self.runtime.model
        headers.setdefault("Vary", "Accept")
        headers.setdefault("Cache-Control", "no-store")
        headers.setdefault("X-Content-Type-Options", "nosniff")
        if not exchange.body_ended and not await _drained(exchange, receive):
            headers["Connection"] = "close"
        await send(message)

    def _record(self, exchange: _Exchange) -> None:
        status = 499 if exchange.gone else exchange.status
        seconds = time.monotonic() - exchange.started
        metrics = self.runtime.metrics
        metrics.count(exchange.route, exchange.method, status, seconds)
        level = logging.DEBUG if exchange.route in _QUIET_ROUTES and status in (200, 503) else logging.INFO
        if access.isEnabledFor(level):
            line = {
                "id": exchange.request_id,
                "method": exchange.method,
                "route": exchange.route,
                "status": status,
                "ms": round(seconds * 1000, 1),
                "in": exchange.bytes_in,
                "out": exchange.bytes_out,
            }
            access.log(level, json.dumps(line))


def _open(scope: Scope) -> _Exchange:
    headers = Headers(scope=scope)
    own = headers.get("x-request-id", "")
    request_id = own if _REQUEST_ID.fullmatch(own) else secrets.token_hex(8)
    exchange = _Exchange(request_id, route_of(scope["path"]), scope["method"], headers)
    has_body = "content-length" in headers or "transfer-encoding" in headers
    exchange.body_ended = not has_body or headers.get("content-length") == "0"
    return exchange


async def _receive(exchange: _Exchange, receive: Receive) -> Message:
    exchange.asked_for_body = True
    message = await receive()
    if message["type"] == "http.disconnect":
        exchange.gone = exchange.gone or not exchange.status
    else:
        exchange.bytes_in += len(message.get("body", b""))
        exchange.body_ended = not message.get("more_body", False)
    return message


async def _drained(exchange: _Exchange, receive: Receive) -> bool:
    """Throw the rest of the body away; whether its end was reached.

    Nothing is read from a client that asked (Expect: 100-continue) and was not told to go on: it has sent nothing.
    """
    if exchange.headers.get("expect", "").lower() == "100-continue" and not exchange.asked_for_body:
        return False
    thrown = 0
    try:
        async with asyncio.timeout(_DRAIN_SECONDS):
            while not exchange.body_ended and thrown < _DRAIN_BYTES:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return False
                thrown += len(message.get("body", b""))
                exchange.body_ended = not message.get("more_body", False)
    except TimeoutError:
        return False
    return exchange.body_ended


def _sent_key(headers: Headers) -> str:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")


def _foreign(status: int, method: str, headers: MutableHeaders) -> RequestError:
    if status == 405:
        return MethodNotAllowed(method, [name.strip() for name in headers.get("allow", "GET").split(",")])
    if status == 503:
        return NotReady("the service is not ready; try again after Retry-After", retry_after=2)
    if status in _FOREIGN:
        return _FOREIGN[status]
    return Internal() if status >= 500 else BadParameter("the request is not understood; see the documentation")
