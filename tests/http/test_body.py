"""The photo out of a body: raw or multipart, in any chunks, with every damage named."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator

import pytest
from starlette.datastructures import Headers

from ptsa_serve.errors import (
    BadMultipart,
    BadParameter,
    MissingImage,
    RequestError,
    TooLarge,
    UnsupportedMediaType,
)
from ptsa_serve.http.body import read_photo

PHOTO = bytes(range(256)) * 4 + b"\r\n--not-the-boundary\r\n\r\n--"
BOUNDARY = "xyz"


def part(name: str = "image", data: bytes = PHOTO, *, filename: str | None = "a.jpg", more: str = "") -> bytes:
    file = f'; filename="{filename}"' if filename is not None else ""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n{more}\r\n'
    return head.encode() + data + b"\r\n"


END = f"--{BOUNDARY}--\r\n".encode()


def read(body: bytes, content_type: str | None = f"multipart/form-data; boundary={BOUNDARY}", *, step: int = 64,
         limit: int = 10_000, **headers: str) -> bytes:  # fmt: skip
    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(body), step):
            yield body[start : start + step]

    sent = headers | ({"content-type": content_type} if content_type is not None else {})
    return asyncio.run(read_photo(Headers(sent), chunks(), limit))


@pytest.mark.parametrize("step", [1, 2, 3, 7, 64, 100_000])
def test_multipart_photo_is_whole_however_it_is_cut(step: int) -> None:
    assert read(part() + END, step=step) == PHOTO


@pytest.mark.parametrize("step", [1, 7, 100_000])
@pytest.mark.parametrize(
    "body",
    [
        b"This is a multi-part message in MIME format.\r\n" + part() + END,
        b"says --xyz within a line, and\r\n--xy\r\n" + part() + END,
        b"\r\n\r\n" + part() + END,
        b"a line of Unix\n" + part() + END,
        part().replace(b"--xyz\r\n", b"--xyz \t\r\n", 1) + END,
        part().replace(b"; filename", b";\r\n\tfilename") + END,
        part().replace(b'filename="a.jpg"', b"filename*=UTF-8''%C3%A4.jpg") + END,
        part() + END + b"an epilogue\r\n--xyz\r\n",
        part() + END[:-2],
    ],
    ids=["preamble", "like-a-boundary", "empty-lines", "unix-preamble", "padding", "folded-header", "filename*",
         "epilogue", "no-last-line-end"],
)  # fmt: skip
def test_multipart_is_taken_as_mime_allows_it(body: bytes, step: int) -> None:
    assert read(body, step=step) == PHOTO


@pytest.mark.parametrize("body", [b"x" * 70_000, b"--xy\r\n" + part()[7:], b"--xyz\r\nContent-Disposition: form-"])
def test_form_without_a_part_is_named(body: bytes) -> None:
    with pytest.raises(BadMultipart, match="no part begins with the boundary"):
        read(body, limit=100_000)


@pytest.mark.parametrize(
    "kind",
    ["image/jpeg", "image/jpg", "IMAGE/PNG", "application/octet-stream", "binary/octet-stream", "", "  ", None],
)
def test_raw_photo_is_taken_with_any_image_type_or_none(kind: str | None) -> None:
    assert read(PHOTO, kind) == PHOTO


@pytest.mark.parametrize("kind", ["text/plain", "application/json", "application/x-www-form-urlencoded", "video/mp4"])
def test_other_types_are_refused_with_those_accepted(kind: str) -> None:
    with pytest.raises(UnsupportedMediaType) as caught:
        read(PHOTO, kind)
    assert "image/*" in caught.value.headers["Accept-Post"]


def test_packed_body_is_refused() -> None:
    with pytest.raises(UnsupportedMediaType, match="gzip"):
        read(PHOTO, "image/jpeg", **{"content-encoding": "gzip"})


@pytest.mark.parametrize(
    ("body", "error", "said"),
    [
        (END, MissingImage, "no part"),
        (part("foo") + END, MissingImage, "'foo'"),
        (part() + part() + END, MissingImage, "2 parts"),
        (part(data=b"") + END, MissingImage, "empty"),
        (part(filename=None, data=b"http://127.0.0.1:9/x") + END, MissingImage, "never fetched"),
        (part() + part("tasks", b"depth", filename=None) + END, BadParameter, "'tasks'"),
        (part(), BadMultipart, "closing boundary"),
        (part()[:-40], BadMultipart, "closing boundary"),
        (b"", MissingImage, "empty"),
        (b"no multipart at all", BadMultipart, "does not parse"),
        (part(more="Content-Transfer-Encoding: base64\r\n") + END, BadMultipart, "as they are"),
        (f"--{BOUNDARY}\r\nX: y\r\n\r\ndata\r\n".encode() + END, BadMultipart, "no name"),
        (part("a", b"x") * 17 + END, BadMultipart, "more than 16 parts"),
    ],
)
def test_damaged_or_wrong_multipart_is_named(body: bytes, error: type[RequestError], said: str) -> None:
    with pytest.raises(error, match=said):
        read(body)


@pytest.mark.parametrize("content_type", ["multipart/form-data", f"multipart/form-data; boundary={'b' * 300}"])
def test_boundary_must_be_there_and_short(content_type: str) -> None:
    with pytest.raises(BadMultipart, match="boundary"):
        read(part() + END, content_type)


def test_empty_body_is_a_missing_image() -> None:
    with pytest.raises(MissingImage, match="empty"):
        read(b"", "image/jpeg")


def test_announced_length_over_the_limit_is_refused_before_reading() -> None:
    with pytest.raises(TooLarge, match="999999999 bytes, the limit is 10000"):
        read(b"", "image/jpeg", **{"content-length": "999999999"})


@pytest.mark.parametrize("content_type", ["image/jpeg", f"multipart/form-data; boundary={BOUNDARY}"])
def test_bytes_are_counted_while_they_come_whatever_was_announced(content_type: str) -> None:
    seen = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal seen
        yield part(data=b"")[:-2]
        while True:
            seen += 100
            yield b"x" * 100

    with pytest.raises(TooLarge):
        asyncio.run(read_photo(Headers({"content-type": content_type, "content-length": "5"}), endless(), 1000))
    assert seen <= 1100


def test_body_of_exactly_the_limit_is_taken() -> None:
    assert len(read(b"x" * 1000, "image/jpeg", limit=1000)) == 1000


def test_random_bytes_are_a_photo_or_a_typed_error() -> None:
    source = random.Random(5)
    whole = part() + END
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(source.randrange(1, 6)):
            damaged[source.randrange(len(damaged))] = source.randrange(256)
        # Anything else that is raised fails the test.
        with contextlib.suppress(BadMultipart, MissingImage, BadParameter):
            read(bytes(damaged), step=source.randrange(1, 200))
