"""The photo out of a request body, raw or multipart: counted while it comes in, never fetched from anywhere else."""

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.datastructures import Headers

from ptsa_serve.errors import BadMultipart, BadParameter, MissingImage, TooLarge, UnsupportedMediaType

__all__ = ["PART", "body_size", "read_body", "read_photo"]

# The name of the one part that holds the photo.
PART = "image"

# Parts after which a multipart body is refused: a form with a photo has one.
_MAX_PARTS = 16

# Bytes up to the end of the first part's headers; beyond this a body is no form.
_MAX_HEAD = 64 * 1024

# "binary/octet-stream" is what S3 and its kin call bytes of an unknown kind.
_RAW = (b"application/octet-stream", b"binary/octet-stream")

_NO_PART = (
    "the multipart body does not parse: no part begins with the boundary that Content-Type names; let the HTTP library "
    "build body and header"
)
_HOW = "send the photo as the body (Content-Type: image/jpeg) or as the multipart part `image`"


@dataclass(slots=True)
class _Part:
    """One part of a multipart body, as far as it has come in; data is kept for the photo alone."""

    headers: dict[bytes, bytes] = field(default_factory=dict)
    header: bytes = b""
    value: bytes = b""
    name: str = ""
    is_file: bool = False
    data: bytearray = field(default_factory=bytearray)


def body_size(headers: Headers, limit: int) -> int:
    """Bytes that the body may have: as announced, else `limit`; never more than `limit`."""
    announced = headers.get("content-length", "")
    return min(int(announced), limit) if announced.isdecimal() else limit


async def read_body(headers: Headers, chunks: AsyncIterator[bytes], limit: int) -> bytes:
    """The whole body, of any type.

    Raises:
        TooLarge: more than `limit` bytes are announced, or come.
    """
    body = bytearray()
    async for chunk in _counted(headers, chunks, limit):
        body += chunk
    return bytes(body)


async def read_photo(headers: Headers, chunks: AsyncIterator[bytes], limit: int) -> bytes:
    """The bytes of the photo in a request with `headers` whose body is `chunks`.

    The Content-Type decides between raw and multipart and is a hint otherwise: whether the bytes are an image, and of
    which format, is for the decoder to say. No Content-Type, or an empty one, is taken as raw bytes.

    Raises:
        UnsupportedMediaType: neither multipart nor an image nor octet-stream.
        TooLarge: more than `limit` bytes of body are announced, or come.
        MissingImage: an empty body, no part `image`, more than one, or one that is text.
        BadMultipart: a damaged multipart body. BadParameter: a part of another name.
    """
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise UnsupportedMediaType(f"Content-Encoding is {encoding[:32]!r}; send the body as it is, images are packed")
    declared = headers.get("content-type", "").strip() or "application/octet-stream"
    kind, options = parse_options_header(declared)
    if kind == b"multipart/form-data":
        form = _Form(options.get(b"boundary", b""))
        empty = True
        async for chunk in _counted(headers, chunks, limit):
            empty = empty and not chunk
            form.feed(chunk)
        if empty:
            raise MissingImage(f"the body is empty; {_HOW}")
        return form.photo()
    if not kind.startswith(b"image/") and kind not in _RAW:
        raise UnsupportedMediaType(
            f"Content-Type is {declared[:100]!r}; {_HOW}",
            headers={"Accept-Post": "image/*, application/octet-stream, multipart/form-data"},
        )
    body = await read_body(headers, chunks, limit)
    if not body:
        raise MissingImage(f"the body is empty; {_HOW}")
    return body


async def _counted(headers: Headers, chunks: AsyncIterator[bytes], limit: int) -> AsyncIterator[bytes]:
    announced = headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limit:
        raise TooLarge(f"the body has {int(announced)} bytes, the limit is {limit}; send a smaller photo")
    seen = 0
    async for chunk in chunks:
        seen += len(chunk)
        if seen > limit:
            raise TooLarge(f"the body has more than {limit} bytes, the limit; send a smaller photo")
        yield chunk


class _Form:
    """A multipart body being parsed; keeps the bytes of the part `image` and the names of the others."""

    def __init__(self, boundary: bytes) -> None:
        if not boundary:
            raise BadMultipart("Content-Type multipart/form-data has no boundary; let the HTTP library set the header")
        self._parts: list[_Part] = []
        self._ended = False
        self._boundary = boundary
        self._head: bytes | None = b""
        callbacks: Any = {
            "on_part_begin": self._begin,
            "on_header_field": self._field,
            "on_header_value": self._value,
            "on_header_end": self._header,
            "on_headers_finished": self._headers,
            "on_part_data": self._data,
            "on_end": self._end,
        }
        try:
            self._parser = MultipartParser(boundary, callbacks)
        except FormParserError as error:
            raise BadMultipart("the boundary of the multipart body is too long; use at most 70 characters") from error

    def feed(self, chunk: bytes) -> None:
        if self._head is not None:
            self._head += chunk
            chunk = self._normal_head()
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise BadMultipart("the multipart body does not parse; let the HTTP library build it") from error

    def _normal_head(self) -> bytes:
        """What came so far once the first part's headers are whole, else nothing.

        RFC 2046 section 5.1.1 allows what the parser does not take: text before the first boundary, blanks behind it,
        headers that go on in the next line.
        """
        head = self._head or b""
        opened = re.search(rb"(?:^|\n)--" + re.escape(self._boundary) + rb"(?:--|[ \t]*\r\n)", head)
        end = head.find(b"\r\n\r\n", opened.end() - 2) if opened else -1
        if opened and opened[0].endswith(b"--"):
            end = opened.end()
        if opened and end >= 0:
            self._head = None
            headers = re.sub(rb"\r\n[ \t]+", b" ", head[opened.end() : end])
            return opened[0].strip() + b"\r\n" + headers + head[end:]
        if len(head) > _MAX_HEAD:
            raise BadMultipart(_NO_PART)
        return b""

    def photo(self) -> bytes:
        if self._head:
            raise BadMultipart(_NO_PART)
        if not self._ended:
            raise BadMultipart("the multipart body ends before its closing boundary; send it whole")
        photos = [part for part in self._parts if part.name == PART]
        others = [part.name for part in self._parts if part.name != PART]
        if not photos:
            found = f"the parts are {', '.join(repr(name[:64]) for name in others)}" if others else "there is no part"
            raise MissingImage(f"{found}, none is named {PART!r}; {_HOW}")
        if len(photos) > 1:
            raise MissingImage(f"there are {len(photos)} parts named {PART!r}; send exactly one photo a request")
        if others:
            raise BadParameter(
                f"the part {others[0][:64]!r} is not known; send the part {PART!r} alone, parameters go into the query",
                parameter=others[0][:64],
                allowed=[PART],
            )
        if not photos[0].is_file:
            raise MissingImage(f"the part {PART!r} is text, and addresses are never fetched; send the file itself")
        if not photos[0].data:
            raise MissingImage(f"the part {PART!r} is empty; {_HOW}")
        return bytes(photos[0].data)

    def _begin(self) -> None:
        if len(self._parts) >= _MAX_PARTS:
            raise BadMultipart(f"there are more than {_MAX_PARTS} parts; send the part {PART!r} alone")
        self._parts.append(_Part())

    def _field(self, data: bytes, start: int, end: int) -> None:
        self._parts[-1].header += data[start:end]

    def _value(self, data: bytes, start: int, end: int) -> None:
        self._parts[-1].value += data[start:end]

    def _header(self) -> None:
        part = self._parts[-1]
        part.headers[part.header.lower()] = part.value
        part.header = part.value = b""

    def _headers(self) -> None:
        part = self._parts[-1]
        disposition = part.headers.get(b"content-disposition", b"")
        _, options = parse_options_header(disposition)
        if b"name" not in options:
            raise BadMultipart(f"a part has no name; name it {PART!r}")
        encoding = part.headers.get(b"content-transfer-encoding", b"binary").strip().lower()
        if encoding not in (b"binary", b"8bit", b"7bit"):
            raise BadMultipart("a part has a Content-Transfer-Encoding; send the bytes as they are")
        part.name = options[b"name"].decode("utf-8", "replace")
        # `filename*` has no place in a form, and yet some libraries send it for names that are not ASCII.
        named = b"filename" in options or re.search(rb";\s*filename\*\s*=", disposition, re.I)
        part.is_file = bool(named) or b"content-type" in part.headers

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._parts[-1].name == PART:
            self._parts[-1].data += memoryview(data)[start:end]

    def _end(self) -> None:
        self._ended = True
