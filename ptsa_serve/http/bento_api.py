"""BentoML's own API of the same job: the shape of its answer, and the guard that stands before its parser.

BentoML reads a text part in place of a file as an address and fetches it, takes bodies of any length, and answers 500
for what is the client's fault. The guard reads the request by the rules of the contract and hands on a canonical
one: a single part `image` with the bytes of the photo.
"""

import secrets
from collections.abc import Iterator
from typing import Annotated, Any

import numpy as np
import pydantic_core
from bentoml.validators import DType
from pydantic import create_model
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ptsa_serve.http import negotiate
from ptsa_serve.http.body import PART, body_size, read_photo
from ptsa_serve.http.runtime import Runtime
from ptsa_serve.http.watch import within
from ptsa_serve.prediction import Prediction
from ptsa_serve.tasks import KINDS, TASKS

__all__ = ["ROUTE", "Guard", "Maps", "arrays_json"]

ROUTE = "/predict"

# Decimals of the arrays in JSON: micrometres and millionths, six times finer than any of the maps is.
_DECIMALS = 6
# Numbers that become text at once.
_NUMBERS = 65_536

# The dictionary of arrays as a schema: BentoML's client turns fields of this type back into arrays.
_fields: dict[str, Any] = {
    name: (Annotated[np.ndarray, DType(KINDS[task.kind][0])], ...) for name, task in TASKS.items()
}
Maps = create_model("Maps", __config__={"arbitrary_types_allowed": True}, **_fields)


def arrays_json(prediction: Prediction) -> Iterator[bytes]:
    """The maps as nested lists by task name: what BentoML's client expects; large, and the slowest way out.

    Made while it is sent, some rows at a time: as Python's objects the maps take eight times their bytes.
    """
    for index, name in enumerate(prediction.maps):
        yield b'%s"%s":[' % (b"," if index else b"{", name.encode())
        values = prediction.maps[name]
        rows = max(1, _NUMBERS * len(values) // values.size)
        for start in range(0, len(values), rows):
            block = values[start : start + rows]
            numbers = block if block.dtype == np.uint8 else np.round(block.astype(np.float64), _DECIMALS)
            yield (b"," if start else b"") + pydantic_core.to_json(numbers.tolist())[1:-1]
        yield b"]"
    yield b"}"


class Guard:
    """ASGI middleware: checks and rewrites POST /predict, lets everything else pass."""

    def __init__(self, app: ASGIApp, runtime: Runtime) -> None:
        self.app = app
        self.runtime = runtime

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != ROUTE or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        request = Request(scope, receive)
        negotiate.no_parameters(request.query_params)
        negotiate.preferred(negotiate.accepted(request.headers), {"json": "application/json"})
        self.runtime.check_open()
        limit = self.runtime.settings.max_bytes
        async with within(self.runtime.deadline(request)):
            # The body as it came, as it is handed on, and as BentoML's parser gives it back.
            wanted = 3 * body_size(request.headers, limit)
            await self.runtime.hold(request.state.held, self.runtime.memory.bodies, wanted)
            photo = await read_photo(request.headers, request.stream(), limit)
        await self._pass_on(photo, scope, receive, send)

    async def _pass_on(self, photo: bytes, scope: Scope, receive: Receive, send: Send) -> None:
        # A fresh boundary: with a known one a photo could hold it, and parts of its own making behind it.
        boundary = secrets.token_hex(24)
        body = _canonical(photo, boundary)
        headers = MutableHeaders(raw=list(scope["headers"]))
        headers["content-type"] = f"multipart/form-data; boundary={boundary}"
        headers["content-length"] = str(len(body))
        del headers["transfer-encoding"]
        pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return pending.pop() if pending else await receive()

        await self.app({**scope, "headers": headers.raw}, replay, send)


def _canonical(photo: bytes, boundary: str) -> bytes:
    disposition = f'Content-Disposition: form-data; name="{PART}"; filename="photo"'
    head = f"--{boundary}\r\n{disposition}\r\nContent-Type: application/octet-stream\r\n\r\n"
    return head.encode() + photo + f"\r\n--{boundary}--\r\n".encode()
