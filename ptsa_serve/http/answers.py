"""From a Prediction to the bytes of an answer: what was asked for decides the encoder."""

from collections.abc import Iterator, Mapping

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ptsa_serve.encoding.encode import npz_pieces, render_png, to_json, to_zip
from ptsa_serve.http.negotiate import Ask, Draw
from ptsa_serve.http.work import Answer
from ptsa_serve.prediction import Prediction
from ptsa_serve.predictor import Prepared

__all__ = ["SLICE", "PiecesResponse", "body", "drawing"]

# Answers go out in slices of so many bytes, each of which the client must take within PTSA_SEND_TIMEOUT_MS.
SLICE = 256 * 1024


class PiecesResponse(Response):
    """An answer in several pieces, sent in slices; each piece is let go when it is sent.

    A slice passes through a dozen layers, BentoML's and ours, whatever its length: hence small pieces share one.
    """

    def __init__(self, pieces: Answer, *, media_type: str, headers: Mapping[str, str]) -> None:
        self._pieces = list(pieces)
        length = sum(len(piece) for piece in self._pieces)
        super().__init__(media_type=media_type, headers={**headers, "Content-Length": str(length)})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it (ASGI)."""
        del scope, receive
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for part in self._slices():
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    def _slices(self) -> Iterator[bytes]:
        parts: list[memoryview] = []
        room = SLICE
        while self._pieces:
            piece = memoryview(self._pieces.pop(0))
            while piece:
                parts.append(piece[:room])
                piece = piece[room:]
                room -= len(parts[-1])
                if not room:
                    yield b"".join(parts)
                    parts, room = [], SLICE
        if parts:
            yield b"".join(parts)


def body(prediction: Prediction, ask: Ask) -> Answer:
    """All maps that `ask` names, in its format."""
    match ask.format:
        case "zip":
            return [to_zip(prediction)]
        case "npz":
            return npz_pieces(prediction, compress=ask.compress, dtype=ask.dtype)
        case "json":
            return [to_json(prediction)]


def drawing(prediction: Prediction, prepared: Prepared, draw: Draw) -> Answer:
    """The one map that `draw` names, as a PNG; an overlay needs `prepared.image`."""
    return [render_png(prediction, draw.task, draw.render, image=prepared.image, opacity=draw.opacity)]
