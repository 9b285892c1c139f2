"""JPEG: whole or not at all, whatever libjpeg says of it; odd files with whole pixels are read; work is bounded."""

import io
import re
import struct
import time

import numpy as np
import pytest
from PIL import Image

from ptsa_serve.errors import BadImage, DeadlineExceeded, RequestError, UnsupportedMediaType
from ptsa_serve.images import ImageLimits, decode, inspect

LIMITS = ImageLimits()
KINDS: dict[str, dict[str, object]] = {
    "baseline": {},
    "444": {"subsampling": 0},
    "progressive": {"progressive": True},
    "optimized": {"optimize": True},
    "restarts": {"restart_marker_rows": 2},
    "grey": {"mode": "L"},
    "cmyk": {"mode": "CMYK"},
}


@pytest.fixture(scope="module", params=KINDS)
def jpeg(request: pytest.FixtureRequest, photo_jpeg: bytes) -> bytes:
    """The same photo in every kind of JPEG that encoders write."""
    return kind(photo_jpeg, **KINDS[request.param])


def kind(photo: bytes, mode: str = "RGB", **options: object) -> bytes:
    file = io.BytesIO()
    with Image.open(io.BytesIO(photo)) as image:
        image.convert(mode).save(file, "JPEG", **options)
    return file.getvalue()


def pixels(data: bytes) -> np.ndarray:
    return decode(data, LIMITS).pixels


def by_pillow(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def segments(data: bytes) -> list[bytes]:
    """SOI, each segment, each scan with its data, EOI."""
    return re.split(rb"(?=\xff[\xc0-\xcf\xd9-\xfe])", data)


def frame_at(data: bytes) -> int:
    match = re.search(rb"\xff[\xc0\xc2]", data)
    assert match
    return match.start()


def test_whole_jpeg_is_read_as_pillow_reads_it(jpeg: bytes):
    assert np.array_equal(pixels(jpeg), by_pillow(jpeg))


@pytest.mark.parametrize("share", [0.5, 0.7, 0.9])
@pytest.mark.parametrize("length", [40, 400])
def test_jpeg_with_a_hole_is_refused(jpeg: bytes, share: float, length: int):
    start = int(len(jpeg) * share)
    for data in (jpeg[:start] + jpeg[start + length :], jpeg[: start - 1000] + b"\xff\xd9"):
        with pytest.raises(BadImage):
            pixels(data)


def test_most_flips_that_show_are_refused(jpeg: bytes):
    """Flips that leave a legal stream cannot be told from a photo; they are about a tenth of all."""
    random = np.random.default_rng(5)
    whole = pixels(jpeg).astype(int)
    passed = 0
    for place in random.integers(frame_at(jpeg), len(jpeg), 60):
        data = bytearray(jpeg)
        data[place] ^= int(random.integers(1, 256))
        try:
            found = pixels(bytes(data))
        except RequestError:
            continue
        shown = found.shape != whole.shape or (np.abs(found - whole).max(2) > 24).mean() > 0.02
        passed += shown
    assert passed <= 20


def test_fault_of_the_header_does_not_hide_one_of_the_pixels(photo_jpeg: bytes):
    """libjpeg tells its first warning alone."""
    odd = photo_jpeg.replace(b"JFIF\0\1", b"JFIF\0\7")
    assert np.array_equal(pixels(odd), pixels(photo_jpeg))
    with pytest.raises(BadImage):
        pixels(odd[:4000] + odd[4600:])
    spare = photo_jpeg[:4000] + photo_jpeg[4600:-2] + b"\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\xff\xd9"
    with pytest.raises(BadImage):
        pixels(spare)


@pytest.mark.parametrize("padding", [b"\0", b"\x12\x34", bytes(500), b"\xff\xff\xff"])
def test_padding_at_the_end_is_no_damage(jpeg: bytes, padding: bytes):
    assert np.array_equal(pixels(jpeg[:-2] + padding + b"\xff\xd9"), pixels(jpeg))


def test_much_else_at_the_end_is_damage(jpeg: bytes):
    with pytest.raises(BadImage):
        pixels(jpeg[:-2] + b"\x55" * 60 + b"\xff\xd9")


@pytest.mark.parametrize("stray", [b"\0", bytes(30), b"\xff\xff", b"\xff\x02"])
def test_stray_bytes_between_segments_are_skipped(jpeg: bytes, stray: bytes):
    assert np.array_equal(pixels(stray.join(segments(jpeg))), pixels(jpeg))


def test_stray_bytes_of_any_value_before_the_frame_are_skipped(jpeg: bytes):
    at = frame_at(jpeg)
    assert np.array_equal(pixels(jpeg[:2] + b"scan" + jpeg[2:at] + b"\x31" * 100 + jpeg[at:]), pixels(jpeg))


def test_thumbnail_never_passes_for_the_photo(photo_jpeg: bytes):
    """Its segments come to the fore when the EXIF block around it says a wrong length."""
    thumbnail = kind(photo_jpeg, quality=50)
    block = b"Exif\0\0" + bytes(40) + thumbnail[2:]
    data = photo_jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + photo_jpeg[2:]
    assert np.array_equal(pixels(data), pixels(photo_jpeg))
    with pytest.raises(BadImage):
        pixels(data[:4] + b"\0\x20" + data[6:])


@pytest.mark.parametrize("tail", [b"", b"trailing", b"\xff\xd9", b"\xff\xd8\xff\xe0\0\x10", bytes(5000)])
def test_what_follows_the_end_does_not_matter(jpeg: bytes, tail: bytes):
    assert np.array_equal(pixels(jpeg + tail), pixels(jpeg))


def test_missing_end_marker_does_not_matter(jpeg: bytes):
    assert np.array_equal(pixels(jpeg[:-2]), pixels(jpeg))


def test_height_may_follow_the_first_scan(photo_jpeg: bytes):
    at = frame_at(photo_jpeg) + 5
    late = photo_jpeg[:at] + b"\0\0" + photo_jpeg[at + 2 : -2] + b"\xff\xdc\0\4" + photo_jpeg[at : at + 2] + b"\xff\xd9"
    assert np.array_equal(pixels(late), pixels(photo_jpeg))
    with pytest.raises(BadImage):
        pixels(photo_jpeg[:at] + b"\0\0" + photo_jpeg[at + 2 :])


def test_frame_of_a_webcam_without_huffman_tables_is_read(photo_jpeg: bytes):
    bare = b"".join(part for part in segments(photo_jpeg) if part[:2] != b"\xff\xc4")
    assert np.array_equal(pixels(bare), pixels(photo_jpeg))


@pytest.mark.parametrize(("old", "new"), [(b"Adobe\0\x64\0\0\0\0\2", b"Adobe\0\x64\0\0\0\0\7")])
def test_unknown_color_transform_is_no_damage(photo_jpeg: bytes, old: bytes, new: bytes):
    with Image.open(io.BytesIO(photo_jpeg)) as image:
        file = io.BytesIO()
        image.convert("CMYK").save(file, "JPEG")
    ycck = re.sub(rb"Adobe\0\x64\0\0\0\0.", old, file.getvalue())
    assert np.array_equal(pixels(ycck.replace(old, new)), pixels(ycck))


@pytest.mark.parametrize(
    ("marker", "precision", "name"),
    [
        (0xC1, 12, "12 bits"),
        (0xC3, 8, "lossless"),
        (0xC3, 16, "lossless"),
        (0xC5, 8, "hierarchical"),
        (0xCB, 8, "lossless"),
        (0xF7, 8, "JPEG-LS"),
    ],
)
def test_other_kinds_of_jpeg_are_named_not_called_damaged(photo_jpeg: bytes, marker: int, precision: int, name: str):
    at = frame_at(photo_jpeg)
    data = (
        photo_jpeg[:at]
        + bytes([0xFF, marker])
        + photo_jpeg[at + 2 : at + 4]
        + bytes([precision])
        + photo_jpeg[at + 5 :]
    )
    with pytest.raises(UnsupportedMediaType, match=rf"{name}.*JPEG, PNG"):
        pixels(data)


@pytest.mark.parametrize("factors", [b"\x42\x11\x11", b"\x22\x21\x12", b"\x31\x11\x11"])
def test_unusual_sampling_is_named_not_called_damaged(photo_jpeg: bytes, factors: bytes):
    data = bytearray(photo_jpeg)
    at = frame_at(photo_jpeg)
    data[at + 11], data[at + 14], data[at + 17] = factors
    with pytest.raises(UnsupportedMediaType, match="sampling"):
        pixels(bytes(data))


def test_progressive_jpeg_without_its_last_scans_is_refused(photo_jpeg: bytes):
    """Each scan is whole, the pixels are blurred."""
    data = kind(photo_jpeg, progressive=True)
    for match in list(re.finditer(rb"\xff\xda", data))[1:]:
        with pytest.raises(BadImage):
            pixels(data[: match.start()] + b"\xff\xd9")


def test_scans_are_counted_before_decoding():
    file = io.BytesIO()
    Image.new("RGB", (4000, 3000), (90, 120, 30)).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    last = data[data.rfind(b"\xff\xda") : -2]
    started = time.process_time()
    with pytest.raises(BadImage, match="scans"):
        inspect(data[:-2] + last * 3000 + b"\xff\xd9", LIMITS)
    assert time.process_time() - started < 1
    assert decode(data, LIMITS, at_least=(100, 100)).pixels.shape == (375, 500, 3)


@pytest.mark.parametrize("spam", [b"\xff\xfe\0\2", b"\xff\xdd\0\4\0\0", b"\xff\x01"])
def test_millions_of_segments_are_refused_at_once(photo_jpeg: bytes, spam: bytes):
    data = photo_jpeg[:2] + spam * 1_000_000 + photo_jpeg[2:]
    started = time.process_time()
    with pytest.raises(BadImage, match="segments"):
        inspect(data, LIMITS)
    assert time.process_time() - started < 1


def test_deadline_that_has_passed_ends_the_work(jpeg: bytes):
    for work in (decode, inspect):
        with pytest.raises(DeadlineExceeded, match="baseline JPEG"):
            work(jpeg, LIMITS, deadline=time.monotonic() - 1)
    decode(jpeg, LIMITS, deadline=time.monotonic() + 60)
