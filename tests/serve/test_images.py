"""Bytes to upright RGB: the policy of the HTTP contract, and that nothing but typed errors comes out."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from ptsa_serve.errors import BadImage, BadParameter, RequestError, TooLarge, UnsupportedMediaType
from ptsa_serve.images import FORMATS, ImageLimits, decode, inspect

LIMITS = ImageLimits()


def saved(image: Image.Image, form: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def ramp(width: int = 60, height: int = 40) -> Image.Image:
    """No two corners alike, smooth, so that lossy formats stay near."""
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([x * 255 // width, y * 255 // height, (x + y) % 256], -1).astype(np.uint8))


@pytest.mark.parametrize("form", FORMATS)
def test_every_listed_format_is_read(form: str):
    photo = decode(saved(ramp(), form), LIMITS)
    assert photo.pixels.shape == (40, 60, 3)
    assert photo.pixels.dtype == np.uint8
    assert photo.format == form
    assert np.abs(photo.pixels.astype(int) - np.asarray(ramp())).mean() < 25  # GIF has 256 colours


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(form: str, orientation: int):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(ramp(), form, exif=exif)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    photo = decode(data, LIMITS)
    assert (photo.height, photo.width) == expected.shape[:2]
    assert photo.orientation == orientation
    assert inspect(data, LIMITS).width == photo.width
    assert np.abs(photo.pixels.astype(int) - expected).mean() < 2


@pytest.mark.parametrize("orientation", [1, 6])
def test_reduced_jpeg_never_falls_below_the_size_asked_for(orientation: int):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(ramp(643, 481), "JPEG", exif=exif)
    for wanted in [(64, 48), (48, 64), (200, 100), (300, 300), (481, 643), (600, 600)]:
        photo = decode(data, LIMITS, at_least=wanted)
        height, width = photo.pixels.shape[:2]
        full = (photo.height, photo.width)
        assert (height, width) == full or (height >= wanted[0] and width >= wanted[1])
    assert decode(data, LIMITS, at_least=(60, 60)).pixels.shape[0] < 200


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
@pytest.mark.parametrize("mode", ["I;16", "I;16B"])
def test_16_bit_grey_is_scaled_not_clipped(form: str, mode: str):
    values = np.linspace(0, 65535, 64 * 32).reshape(32, 64).astype(">u2" if mode == "I;16B" else "<u2")
    image = Image.frombytes(mode, (64, 32), values.tobytes())
    pixels = decode(saved(image, form), LIMITS).pixels
    assert np.array_equal(pixels[..., 0], np.rint(values.astype(float) / 257).astype(np.uint8))


def test_16_bit_grey_reaches_black_and_white():
    values = np.full((20, 20), 65535, np.uint16)
    values[:10] = 0
    pixels = decode(saved(Image.fromarray(values), "PNG"), LIMITS).pixels
    assert pixels[0, 0, 0] == 0
    assert pixels[19, 0, 0] == 255


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr"])
def test_other_modes_become_rgb(mode: str):
    image = ramp().convert(mode)
    pixels = decode(saved(image, "TIFF"), LIMITS).pixels
    assert np.array_equal(pixels, np.asarray(image.convert("RGB")))


def test_cmyk_jpeg_becomes_rgb():
    pixels = decode(saved(Image.new("CMYK", (32, 32), (0, 255, 255, 0)), "JPEG"), LIMITS).pixels
    assert np.abs(pixels.astype(int) - (255, 0, 0)).max() < 12


def test_grey_jpeg_becomes_rgb():
    pixels = decode(saved(Image.new("L", (32, 32), 77), "JPEG"), LIMITS).pixels
    assert np.abs(pixels.astype(int) - 77).max() <= 1


@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF"])
def test_alpha_is_composed_on_white(form: str):
    image = Image.new("RGBA", (32, 32), (200, 0, 0, 0))
    image.paste((0, 100, 0, 255), (0, 0, 16, 32))
    options = {"lossless": True} if form == "WEBP" else {}
    pixels = decode(saved(image, form, **options), LIMITS).pixels
    assert tuple(pixels[0, 31]) == (255, 255, 255)
    assert tuple(pixels[0, 0]) == (0, 100, 0)


def test_transparent_palette_entry_is_white():
    image = Image.new("P", (32, 32), 0)
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.paste(1, (0, 0, 16, 32))
    pixels = decode(saved(image, "PNG", transparency=0), LIMITS).pixels
    assert tuple(pixels[0, 31]) == (255, 255, 255)
    assert tuple(pixels[0, 0]) == (40, 50, 60)


@pytest.mark.parametrize("form", ["GIF", "WEBP", "TIFF"])
def test_first_frame_of_several_is_taken(form: str):
    frames = [Image.new("RGB", (32, 32), color) for color in ("red", "blue", "green")]
    options = {"lossless": True} if form == "WEBP" else {}
    data = saved(frames[0], form, save_all=True, append_images=frames[1:], **options)
    assert tuple(decode(data, LIMITS).pixels[5, 5]) == (255, 0, 0)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_truncated_file_is_refused(form: str, share: float):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8))
    data = saved(noise, form)
    with pytest.raises(BadImage):
        decode(data[: int(len(data) * share)], LIMITS)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_jpeg_with_a_missing_middle_is_refused(photo_jpeg: bytes, share: float):
    """Pillow alone would return it, grey from there on."""
    with pytest.raises(BadImage):
        decode(photo_jpeg[: int(len(photo_jpeg) * share)] + b"\xff\xd9", LIMITS)


def test_jpeg_with_bytes_to_spare_is_read(photo_jpeg: bytes):
    whole = decode(photo_jpeg, LIMITS).pixels
    for data in (photo_jpeg + b"trailing bytes", photo_jpeg[:-2] + b"\x12\x34\xff\xd9"):
        assert np.array_equal(decode(data, LIMITS).pixels, whole)


def test_damaged_exif_does_not_matter(photo_jpeg: bytes):
    data = photo_jpeg[:2] + b"\xff\xe1\0\x12Exif\0\0II*\0\xff\xff\xff\xff\0\0" + photo_jpeg[2:]
    assert decode(data, LIMITS).orientation == 1


@pytest.mark.parametrize(
    ("start", "name"),
    [
        (b"%PDF-1.7", "PDF"),
        (b"\0\0\0\x18ftypheic", "HEIC"),
        (b"8BPS", "Photoshop"),
        (b"\0\0\x01\0", "ICO"),
        (b"%!PS-Adobe", "PostScript"),
    ],
)
def test_other_formats_are_named_and_refused(start: bytes, name: str):
    with pytest.raises(UnsupportedMediaType, match=rf"{name}.*JPEG"):
        decode(start + bytes(200), LIMITS)


@pytest.mark.parametrize("data", [b"", b"x", b"hello, world" * 50, b"<html></html>", bytes(1000)])
def test_bytes_that_are_no_image_are_refused(data: bytes):
    with pytest.raises(BadImage, match=r"no image|no bytes"):
        decode(data, LIMITS)


@pytest.mark.parametrize("mode", ["F", "I"])
def test_pixels_without_a_known_range_are_refused(mode: str):
    with pytest.raises(UnsupportedMediaType, match="8 or 16 bits"):
        decode(saved(ramp().convert("L").convert(mode), "TIFF"), LIMITS)


def test_pixels_are_counted_before_decoding():
    """A header that claims 39 megapixels over nothing at all: refused for its size, not for the missing pixels."""
    header = saved(Image.new("1", (8000, 5000)), "PNG")[:64]
    with pytest.raises(TooLarge, match="8000 x 5000"):
        inspect(header, ImageLimits(max_pixels=1_000_000))


def test_bomb_is_too_large():
    bomb = saved(Image.new("1", (16_000, 12_000)), "PNG")
    with pytest.raises(TooLarge, match="pixels"):
        decode(bomb, LIMITS)


@pytest.mark.parametrize(("width", "height"), [(15, 100), (100, 15), (101, 16)])
def test_sides_outside_the_limits_are_named(width: int, height: int):
    with pytest.raises(BadParameter, match=rf"{width} x {height}.*16 to 100") as caught:
        inspect(saved(Image.new("L", (width, height)), "PNG"), ImageLimits(max_side=100))
    assert caught.value.allowed


def test_limits_hold_for_the_upright_photo():
    exif = Image.Exif()
    exif[0x0112] = 6
    header = inspect(saved(ramp(60, 40), "JPEG", exif=exif), LIMITS)
    assert (header.width, header.height) == (40, 60)


def test_bytes_are_limited():
    with pytest.raises(TooLarge, match="at most 10"):
        inspect(b"\xff\xd8\xff" + bytes(20), ImageLimits(max_bytes=10))


@pytest.mark.parametrize("wrong", [{"max_pixels": 0}, {"max_pixels": 10**9}, {"min_side": 0}, {"max_side": 3}])
def test_senseless_limits_are_refused(wrong: dict[str, int]):
    with pytest.raises(ValueError, match=r"limits|max_pixels"):
        ImageLimits(**wrong)


SEEDS = {form: saved(ramp(40, 30), form) for form in FORMATS}


@settings(max_examples=150, deadline=None)
@given(form=st.sampled_from(FORMATS), cuts=st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=8)), max_size=4))
def test_damaged_bytes_give_a_photo_or_a_typed_error(form: str, cuts: list[tuple[float, bytes]]):
    data = bytearray(SEEDS[form])
    for place, patch in cuts:
        start = int(place * len(data))
        data[start : start + len(patch)] = patch
    check_total(bytes(data))


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes_give_a_photo_or_a_typed_error(data: bytes):
    check_total(data)
    check_total(b"\xff\xd8\xff" + data)
    check_total(b"II*\0" + data)


def check_total(data: bytes) -> None:
    limits = ImageLimits(max_pixels=100_000)
    try:
        photo = decode(data, limits, at_least=(20, 20))
    except RequestError as caught:
        status, detail = caught.status, caught.detail
    else:
        assert photo.pixels.dtype == np.uint8
        assert photo.pixels.shape[2] == 3
        return
    assert status in (400, 413, 415, 422)
    assert "Error" not in detail
    assert "PIL" not in detail
