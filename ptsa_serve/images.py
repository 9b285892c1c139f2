"""Bytes of a photo to upright 8-bit RGB: the one place that decides what is a photo.

Policy (docs: the HTTP contract, "A photo in"): the bytes decide the format, only the formats of `FORMATS` are
read; limits are checked from the header, before a pixel is decoded; EXIF orientation is applied; grey and
palette become RGB, 16-bit grey is scaled, CMYK is converted, alpha is composed on white; the first frame of
several is taken. Colour profiles are ignored, as they were in training. Nothing that Pillow says reaches the
caller.
"""

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image, features

from ptsa_serve.errors import BadImage, BadParameter, TooLarge, UnsupportedMediaType

__all__ = ["FORMATS", "PIXELS_CEILING", "Header", "ImageLimits", "Photo", "decode", "inspect"]

# Formats that are read, by Pillow's name. Pillow knows dozens more; a server must not open them.
FORMATS: tuple[str, ...] = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
if features.check("avif"):
    FORMATS = (*FORMATS, "AVIF")

# Above this Pillow warns and, at twice this, refuses by itself: its own limit, so that ours always decides.
PIXELS_CEILING = 89_478_485

_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    # Known, and not read: the answer names them.
    (b"%PDF-", "PDF"),
    (b"8BPS", "Photoshop"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    (b"\0\0\x01\0", "ICO"),
    (b"%!PS", "PostScript"),
    (b"<svg", "SVG"),
    (b"qoif", "QOI"),
    (b"v/1\x01", "OpenEXR"),
    (b"SIMPLE  =", "FITS"),
)
_BRANDS: dict[bytes, str] = {
    b"avif": "AVIF",
    b"avis": "AVIF",
    b"heic": "HEIC",
    b"heix": "HEIC",
    b"hevc": "HEIC",
    b"heim": "HEIC",
    b"heis": "HEIC",
    b"mif1": "HEIC",
    b"msf1": "HEIC",
}
# libjpeg's warnings after which every pixel is there: bytes left over before the end marker (ff d9), odd
# headers.
_HARMLESS = (
    "extraneous bytes before marker 0xd9",
    "unknown JFIF revision number",
    "Unknown Adobe color transform code",
    "Invalid SOS parameters",
)
_AGAIN = "send the file again, or save it anew as JPEG or PNG"


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What a photo may be: bytes of the file, pixels of the photo, pixels of each side."""

    max_bytes: int = 20 * 2**20
    max_pixels: int = 40_000_000
    min_side: int = 16
    max_side: int = 16_384

    def __post_init__(self) -> None:
        if not 0 < self.max_pixels <= PIXELS_CEILING:
            raise ValueError(f"max_pixels is {self.max_pixels}, allowed are 1 to {PIXELS_CEILING}")
        if not 0 < self.min_side <= self.max_side or self.max_bytes <= 0:
            raise ValueError(f"limits must be positive, and min_side at most max_side: {self}")


@dataclass(frozen=True, slots=True)
class Header:
    """What the header says: width and height of the upright photo, EXIF orientation 1...8, format of
    `FORMATS`.
    """

    width: int
    height: int
    orientation: int
    format: str


@dataclass(frozen=True, slots=True)
class Photo:
    """An upright photo: pixels uint8 (h, w, 3) RGB, maybe smaller than height x width (see `decode`)."""

    pixels: np.ndarray
    width: int
    height: int
    orientation: int
    format: str


def inspect(data: bytes, limits: ImageLimits) -> Header:
    """Read the header and check the limits, without decoding.

    Raises BadImage, UnsupportedMediaType, TooLarge, or BadParameter for a side too short or too long.
    """
    return _open(data, limits)[1]


def decode(data: bytes, limits: ImageLimits, *, at_least: tuple[int, int] | None = None) -> Photo:
    """The upright photo of `data`.

    With `at_least` (h, w), in upright pixels, a JPEG may come at 1/2, 1/4 or 1/8 of its size, never below (h,
    w): several times faster for large photos. Raises as `inspect`, and BadImage for pixels that do not decode
    whole.
    """
    image, header = _open(data, limits)
    height, width = at_least or (0, 0)
    smallest = (height, width) if header.orientation < 5 else (width, height)
    try:
        pixels = _jpeg(data, image, smallest) if header.format == "JPEG" else np.asarray(_rgb(image))
    except (BadImage, UnsupportedMediaType, MemoryError):
        raise
    except Exception:
        # Damaged files make Pillow's decoders raise nearly anything: OSError, SyntaxError, IndexError,
        # struct.error.
        raise BadImage(f"the {header.format} file is truncated or damaged; {_AGAIN}") from None
    return Photo(_upright(pixels, header), header.width, header.height, header.orientation, header.format)


def _open(data: bytes, limits: ImageLimits) -> tuple[Image.Image, Header]:
    if len(data) > limits.max_bytes:
        raise TooLarge(f"the file has {len(data)} bytes, at most {limits.max_bytes} are allowed; send a smaller one")
    name = _sniff(data)
    try:
        image = Image.open(io.BytesIO(data), formats=[name])
        orientation = _orientation(image)
        width, height = image.size
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise TooLarge(f"the photo has more than {limits.max_pixels} pixels; send a smaller one") from None
    except Exception:
        raise BadImage(f"the bytes start like {name}, but the header is damaged; {_AGAIN}") from None
    # Pillow gives the size of a TIFF as it will be after orientation, all other formats as stored.
    if orientation >= 5 and name != "TIFF":
        width, height = height, width
    _check_size(width, height, limits)
    return image, Header(width, height, orientation, name)


def _sniff(data: bytes) -> str:
    """The format by the first bytes. Raises BadImage (no image known), UnsupportedMediaType (known, not
    read).
    """
    found = None
    if data[4:8] == b"ftyp":
        found = _BRANDS.get(data[8:12])
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        found = "WEBP"
    else:
        found = next((name for magic, name in _MAGIC if data.startswith(magic)), None)
    if found is None:
        what = f"{len(data)} bytes that are no image" if data else "no bytes"
        raise BadImage(f"found {what}; send a photo as {_listed()}")
    if found not in FORMATS:
        raise UnsupportedMediaType(f"found a {found} file; send a photo as {_listed()}", allowed=FORMATS)
    return found


def _listed() -> str:
    return f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 where there is none; a damaged EXIF block does not make the photo unreadable."""
    if image.format == "PNG" and "exif" not in image.info:
        # Asking for it would decode the pixels; a PNG whose EXIF follows the pixels is taken as it is.
        return 1
    try:
        value = image.getexif().get(0x0112, 1)
    except Exception:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _check_size(width: int, height: int, limits: ImageLimits) -> None:
    found = f"the photo has {width} x {height} pixels"
    if width * height > limits.max_pixels:
        raise TooLarge(f"{found}, at most {limits.max_pixels} in all are allowed; send a smaller one")
    if min(width, height) < limits.min_side or max(width, height) > limits.max_side:
        allowed = f"each side may have {limits.min_side} to {limits.max_side}"
        raise BadParameter(f"{found}; {allowed}", parameter="image", allowed=[allowed])


def _jpeg(data: bytes, image: Image.Image, smallest: tuple[int, int]) -> np.ndarray:
    """Pixels as stored, uint8 (h, w, 3), at a power of two below the whole size but not below `smallest` (h,
    w).

    libjpeg goes on after damage, with grey where data is missing, and Pillow does not tell; simplejpeg does.
    It cannot read CMYK: Pillow does, and finds truncation alone.
    """
    height, width = smallest
    if image.mode in ("RGB", "L"):
        try:
            scale = _jpeg_scale((image.height, image.width), smallest)
            target = (-(-image.height // scale), -(-image.width // scale))
            return simplejpeg.decode_jpeg(data, "RGB", min_height=target[0], min_width=target[1])
        except ValueError as error:
            if not any(words in str(error) for words in _HARMLESS):
                raise
    if smallest != (0, 0):
        image.draft(image.mode, (width, height))
    return np.asarray(_rgb(image))


def _jpeg_scale(stored: tuple[int, int], smallest: tuple[int, int]) -> int:
    """The largest of 8, 4, 2, 1 that leaves `stored` at least `smallest` (0, 0 asks for the whole)."""
    if smallest == (0, 0):
        return 1
    return next((k for k in (8, 4, 2) if all(a // k >= b for a, b in zip(stored, smallest, strict=True))), 1)


def _rgb(image: Image.Image) -> Image.Image:
    """`image` as 8-bit RGB, its first frame; alpha composed on white."""
    image.load()
    if image.mode.startswith("I;16"):
        return _from_16_bit(image)
    if image.mode in ("I", "F", "LAB"):
        raise UnsupportedMediaType(
            f"found pixels of the kind {image.mode!r} (32-bit or L*a*b*), which have no one brightness; "
            "save the photo with 8 or 16 bits a channel, grey or RGB"
        )
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _from_16_bit(image: Image.Image) -> Image.Image:
    """16-bit grey to RGB, rounded. Scaled by hand: Pillow's own conversion clips everything above 255 to
    white.
    """
    values = np.asarray(image).astype(np.uint32)
    grey = ((values * 255 + 32767) // 65535).astype(np.uint8)
    key: Any = image.info.get("transparency")
    if isinstance(key, int):
        grey[values == key] = 255
    return Image.fromarray(grey).convert("RGB")


def _upright(pixels: np.ndarray, header: Header) -> np.ndarray:
    """Pixels (h, w, 3), contiguous, turned as EXIF says (its specification, tag 274); Pillow has turned a
    TIFF already.
    """
    turn = 1 if header.format == "TIFF" else header.orientation
    if turn >= 5:
        pixels = pixels.transpose(1, 0, 2)
    # After the transposition: which of rows and columns still run backwards.
    rows, columns = {2: (1, -1), 3: (-1, -1), 4: (-1, 1), 6: (1, -1), 7: (-1, -1), 8: (-1, 1)}.get(turn, (1, 1))
    return np.ascontiguousarray(pixels[::rows, ::columns])
