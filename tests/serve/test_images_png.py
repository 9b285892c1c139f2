"""PNG: every row is there or the file is refused; what is not pixels costs nothing."""

import io
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from ptsa_serve.errors import BadImage, UnsupportedMediaType
from ptsa_serve.images import ImageLimits, decode, inspect

LIMITS = ImageLimits()
HEIGHT, WIDTH = 35, 50
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
KINDS = [(0, 1), (0, 2), (0, 4), (0, 8), (0, 16), (2, 8), (2, 16), (3, 4), (3, 8), (4, 8), (4, 16), (6, 8), (6, 16)]
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def rows(values: np.ndarray, depth: int) -> list[bytes]:
    """Unfiltered rows."""
    if depth == 16:
        return [b"\0" + row.astype(">u2").tobytes() for row in values]
    single = (values.reshape(len(values), -1, 1) >> np.arange(depth - 1, -1, -1)) & 1
    return [b"\0" + np.packbits(row.astype(np.uint8).ravel()).tobytes() for row in single]


def noise(color: int, depth: int) -> np.ndarray:
    return np.random.default_rng(depth).integers(0, 1 << depth, (HEIGHT, WIDTH, CHANNELS[color]))


def png(
    color: int, depth: int, stream: bytes, *, interlaced: bool = False, before: bytes = b"", end: bool = True
) -> bytes:
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, depth, color, 0, 0, interlaced)
    palette = chunk(b"PLTE", bytes(range(256)) * 3) if color == 3 and depth == 8 else chunk(b"PLTE", bytes(range(48)))
    parts = [chunk(b"IHDR", header), palette if color == 3 else b"", before, chunk(b"IDAT", stream)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + (chunk(b"IEND", b"") if end else b"")


def pixels(data: bytes) -> np.ndarray:
    return decode(data, LIMITS).pixels


def scaled(values: np.ndarray, depth: int) -> np.ndarray:
    return np.rint(values * 255 / ((1 << depth) - 1)).astype(int)


@pytest.mark.parametrize(("color", "depth"), KINDS)
@pytest.mark.parametrize("interlaced", [False, True])
def test_stream_that_ends_early_but_properly_is_refused(color: int, depth: int, interlaced: bool):
    values = noise(color, depth)
    passes = ADAM7 if interlaced else ((0, 0, 1, 1),)
    raw = b"".join(row for x, y, dx, dy in passes for row in rows(values[y::dy, x::dx], depth))
    whole = pixels(png(color, depth, zlib.compress(raw), interlaced=interlaced))
    if color in (0, 2):
        assert np.abs(whole - scaled(values, depth)).max() <= 1
    for cut in (len(raw) // 2, len(raw) - 1):
        with pytest.raises(BadImage):
            pixels(png(color, depth, zlib.compress(raw[:cut]), interlaced=interlaced))


def test_missing_interlace_pass_is_refused():
    values = noise(2, 8)
    parts = [b"".join(rows(values[y::dy, x::dx], 8)) for x, y, dx, dy in ADAM7]
    with pytest.raises(BadImage):
        pixels(png(2, 8, zlib.compress(b"".join(parts[:-1])), interlaced=True))


@pytest.mark.parametrize("fault", ["checksum of the stream", "checksum of a chunk", "no checksum", "flip"])
def test_damaged_stream_is_refused(fault: str):
    stream = bytearray(zlib.compress(b"".join(rows(noise(2, 8), 8))))
    if fault == "checksum of the stream":
        stream[-1] ^= 1
    elif fault == "no checksum":
        del stream[-4:]
    elif fault == "flip":
        stream[len(stream) // 2] ^= 1
    data = bytearray(png(2, 8, bytes(stream)))
    if fault == "checksum of a chunk":
        data[-14] ^= 1
    with pytest.raises(BadImage):
        pixels(bytes(data))


def test_missing_end_and_rows_to_spare_do_not_matter():
    raw = b"".join(rows(noise(2, 8), 8))
    whole = pixels(png(2, 8, zlib.compress(raw)))
    assert np.array_equal(pixels(png(2, 8, zlib.compress(raw), end=False)), whole)
    assert np.array_equal(pixels(png(2, 8, zlib.compress(raw + bytes(500)))), whole)


@pytest.mark.parametrize(("color", "depth"), [(0, 1), (0, 2), (0, 4), (0, 8), (0, 16), (2, 8), (2, 16)])
def test_color_key_is_white(color: int, depth: int):
    values = noise(color, depth)
    key = values[7, 9]
    values[7, 10] = key
    values[7, 11] = key ^ 1
    before = chunk(b"tRNS", struct.pack(f">{len(key)}H", *key))
    found = pixels(png(color, depth, zlib.compress(b"".join(rows(values, depth))), before=before))
    expected = np.where((values == key).all(-1, keepdims=True), 255, scaled(values, depth))
    assert np.abs(found - expected).max() <= 1
    assert tuple(found[7, 10]) == (255, 255, 255)


@pytest.mark.parametrize("name", [b"zTXt", b"iTXt", b"iCCP", b"tEXt"])
def test_megabytes_of_text_or_profile_do_not_matter(name: bytes):
    packed = zlib.compress(bytes(30_000_000))
    body = {b"zTXt": b"a\0\0" + packed, b"iCCP": b"a\0\0" + packed, b"iTXt": b"a\0\1\0\0\0" + packed}
    before = chunk(name, body.get(name, b"a\0" + b"x" * 3_000_000))
    stream = zlib.compress(b"".join(rows(noise(2, 8), 8)))
    assert np.array_equal(pixels(png(2, 8, stream, before=before * 2)), pixels(png(2, 8, stream)))


def test_damage_outside_the_pixels_does_not_matter():
    before = b"\0\0\0\x01tEXtaXXXX" + chunk(b"sBIT", b"\5\6\5") + chunk(b"acTL", b"")
    stream = zlib.compress(b"".join(rows(noise(2, 8), 8)))
    assert np.array_equal(pixels(png(2, 8, stream, before=before)), pixels(png(2, 8, stream)))


def test_bytes_that_inflate_without_end_are_refused_soon():
    started = time.process_time()
    with pytest.raises(BadImage):
        pixels(png(2, 8, zlib.compress(bytes(200_000_000), 1)))
    assert time.process_time() - started < 2


@pytest.mark.parametrize("spam", [b"tEXt", b"IDAT"])
def test_millions_of_chunks_are_refused_at_once(spam: bytes):
    started = time.process_time()
    with pytest.raises(BadImage, match="chunks"):
        inspect(png(2, 8, b"", before=chunk(spam, b"") * 500_000), LIMITS)
    assert time.process_time() - started < 2


def test_pixels_in_many_small_chunks_are_read():
    stream = zlib.compress(b"".join(rows(noise(2, 8), 8)))
    pieces = b"".join(chunk(b"IDAT", stream[at : at + 1]) for at in range(len(stream)))
    assert np.array_equal(pixels(png(2, 8, b"", before=pieces)), pixels(png(2, 8, stream)))


def test_exif_turns_wherever_it_stands_and_xmp_never_does():
    exif = Image.Exif()
    exif[0x0112] = 6
    block = chunk(b"eXIf", exif.tobytes()[6:])
    stream = zlib.compress(b"".join(rows(noise(2, 8), 8)))
    first, last = png(2, 8, stream, before=block), png(2, 8, stream, end=False) + block + chunk(b"IEND", b"")
    assert [inspect(data, LIMITS).orientation for data in (first, last)] == [6, 6]


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
def test_orientation_in_xmp_alone_is_not_applied(form: str):
    xmp = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", xmp)
    options = {"PNG": {"pnginfo": text}, "TIFF": {"tiffinfo": {700: xmp.encode()}}}.get(form, {"xmp": xmp.encode()})
    file = io.BytesIO()
    Image.new("RGB", (64, 32)).save(file, form, **options)
    header = inspect(file.getvalue(), LIMITS)
    assert (header.width, header.height, header.orientation) == (64, 32, 1)


def test_png_of_another_kind_is_named():
    with pytest.raises(UnsupportedMediaType, match="iOS"):
        inspect(b"\x89PNG\r\n\x1a\n" + chunk(b"CgBI", bytes(4)) + png(2, 8, b"")[8:], LIMITS)
