"""GIF, BMP, WebP and AVIF: rows that are missing, alpha that is none, brands, bounded work."""

import io
import struct
import time

import numpy as np
import pytest
from PIL import Image

from ptsa_serve.errors import BadImage, DeadlineExceeded, UnsupportedMediaType
from ptsa_serve.images import FORMATS, ImageLimits, decode, inspect

LIMITS = ImageLimits()
HEIGHT, WIDTH = 32, 48
PIXELS = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
MASKS = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)


def saved(image: Image.Image, form: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def bmp(bits: int, packing: int, pixels: bytes, *, header: int = 40, masks: bytes = b"", palette: bytes = b"") -> bytes:
    size = struct.pack("<IiiHHIIiiII", header, WIDTH, HEIGHT, 1, bits, packing, len(pixels), 0, 0, len(palette) // 4, 0)
    head = (size + masks + bytes(header))[: max(header, 40 + len(masks))] if masks else size
    start = 14 + len(head) + len(palette)
    return b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start) + head + palette + pixels


def with_alpha(alpha: np.ndarray | int) -> bytes:
    """Rows from below, blue first."""
    flipped = PIXELS[::-1]
    return np.dstack([flipped[..., ::-1], np.broadcast_to(alpha, flipped.shape[:2]).astype(np.uint8)]).tobytes()


@pytest.mark.parametrize("alpha", [0, 255])
@pytest.mark.parametrize(("header", "masks"), [(40, b""), (40, MASKS[:12]), (56, MASKS), (108, MASKS), (124, MASKS)])
def test_bmp_with_no_alpha_at_all_is_opaque(alpha: int, header: int, masks: bytes):
    data = bmp(32, 3 if masks else 0, with_alpha(alpha), header=header, masks=masks)
    assert np.array_equal(decode(data, LIMITS).pixels, PIXELS)


def test_bmp_with_real_alpha_is_composed_on_white():
    half = np.where(np.arange(WIDTH) < 24, 0, 255)
    found = decode(bmp(32, 3, with_alpha(half), header=124, masks=MASKS), LIMITS).pixels
    assert (found[:, :24] == 255).all()
    assert np.array_equal(found[:, 24:], PIXELS[:, 24:])


@pytest.mark.parametrize("header", [56, 124])
def test_bmp_of_1_5_5_5_bits_without_alpha_is_opaque(header: int):
    five = PIXELS[::-1].astype(int) >> 3
    values = (five[..., 0] << 10 | five[..., 1] << 5 | five[..., 2]).astype("<u2")
    data = bmp(16, 3, values.tobytes(), header=header, masks=struct.pack("<4I", 0x7C00, 0x3E0, 0x1F, 0x8000))
    assert np.abs(decode(data, LIMITS).pixels.astype(int) - PIXELS).max() < 9


@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF"])
def test_alpha_that_a_format_defines_counts_even_if_it_is_zero(form: str):
    image = Image.fromarray(PIXELS)
    image.putalpha(0)
    options = {"lossless": True, "exact": True} if form == "WEBP" else {}
    assert (decode(saved(image, form, **options), LIMITS).pixels == 255).all()


@pytest.mark.parametrize("end", [b"", b"\0\1"])
def test_short_rows_of_a_packed_bmp_are_refused(end: bytes):
    palette = bytes(channel for grey in range(256) for channel in (grey, grey, grey, 0))
    packed = b"".join(bytes([WIDTH, row, 0, 0]) for row in range(HEIGHT))
    assert decode(bmp(8, 1, packed + b"\0\1", palette=palette), LIMITS).pixels[0, 0, 0] == HEIGHT - 1
    with pytest.raises(BadImage):
        decode(bmp(8, 1, packed[: len(packed) // 2] + end, palette=palette), LIMITS)


def test_deadline_ends_a_slow_bmp():
    pixels = b"\1\7" * (4000 * 600)
    data = bytearray(bmp(8, 1, pixels, palette=bytes(1024)))
    data[18:26] = struct.pack("<ii", 4000, 600)
    started = time.process_time()
    with pytest.raises(DeadlineExceeded):
        decode(bytes(data), LIMITS, deadline=time.monotonic() + 0.1)
    assert time.process_time() - started < 0.5


def gif(height: int = HEIGHT, **options: object) -> bytes:
    return saved(Image.fromarray(PIXELS[:height]).quantize(64, dither=Image.Dither.NONE), "GIF", **options)


@pytest.mark.parametrize("interlace", [0, 1])
def test_gif_with_missing_rows_is_refused(interlace: int):
    whole, half = gif(interlace=interlace), bytearray(gif(HEIGHT // 2, interlace=interlace))
    with Image.open(io.BytesIO(whole)) as image:
        assert np.array_equal(decode(whole, LIMITS).pixels, np.asarray(image.convert("RGB")))
    # Half of the rows, properly ended, and a header that promises all.
    frame = half.index(b",\0\0\0\0" + struct.pack("<HH", WIDTH, HEIGHT // 2))
    half[frame + 7] = half[8] = HEIGHT
    with pytest.raises(BadImage):
        decode(bytes(half), LIMITS)


def test_gif_keeps_its_transparency_and_its_screen():
    image = Image.new("P", (WIDTH, HEIGHT), 1)
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.paste(0, (0, 0, 24, HEIGHT))
    found = decode(saved(image, "GIF", transparency=0), LIMITS).pixels
    assert tuple(found[0, 0]) == (255, 255, 255)
    assert tuple(found[0, 30]) == (40, 50, 60)


@pytest.mark.parametrize("spam", [b"!\xfe\0", b"\0", b"!\xf9\4\0\0\0\0\0"])
def test_millions_of_gif_blocks_are_refused_at_once(spam: bytes):
    data = gif()
    started = time.process_time()
    with pytest.raises(BadImage, match="blocks"):
        inspect(data[:13] + bytes(3 << 1 + (data[10] & 7)) + spam * 2_000_000 + data[-200:], LIMITS)
    assert time.process_time() - started < 1


@pytest.mark.skipif("AVIF" not in FORMATS, reason="this Pillow reads no AVIF")
@pytest.mark.parametrize("brand", [b"avif", b"mif1", b"msf1", b"miaf"])
def test_avif_is_known_by_the_brands_it_is_compatible_with(brand: bytes):
    data = saved(Image.fromarray(PIXELS), "AVIF")
    size = int.from_bytes(data[:4], "big")
    brands = (b"mif1" + b"avif" + b"miaf" * 9)[: size - 16]
    renamed = data[:8] + brand + bytes(4) + brands + data[size:]
    assert np.array_equal(decode(renamed, LIMITS).pixels, decode(data, LIMITS).pixels)


@pytest.mark.parametrize("brand", [b"mif1", b"msf1", b"heic"])
@pytest.mark.parametrize("compatible", [b"", b"heic", b"mif1heic"])
def test_heic_is_named(brand: bytes, compatible: bytes):
    data = struct.pack(">I", 16 + len(compatible)) + b"ftyp" + brand + bytes(4) + compatible + bytes(50)
    with pytest.raises(UnsupportedMediaType, match="HEIC"):
        inspect(data, LIMITS)


@pytest.mark.parametrize("length", range(4, 24))
def test_ftyp_box_that_is_cut_is_a_typed_error(length: int):
    with pytest.raises((BadImage, UnsupportedMediaType)):
        inspect(b"\0\0\0\x18ftypmif1\0\0\0\0avifmiaf"[:length], LIMITS)


def test_deadline_ends_every_format():
    for form in FORMATS:
        data = saved(Image.fromarray(PIXELS), form)
        with pytest.raises(DeadlineExceeded):
            decode(data, LIMITS, deadline=time.monotonic() - 1)
