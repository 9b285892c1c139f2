"""Bytes of a photo to upright 8-bit RGB: the one place that decides what is a photo.

Policy (docs/http-api.md, "A photo in"): the bytes decide the format, only the formats of `FORMATS` are
read; limits are checked from the header, before a pixel is decoded, and so is what a file costs where its size does
not show it; a deadline ends the work. A photo is read whole or not at all. Orientation is EXIF's, in every format (in
AVIF its own properties stand for it); XMP is not asked. Grey and palette become RGB, more than 8 bits are scaled, CMYK
is converted, alpha is composed on white where the format defines it; the first frame of several is taken. Colour
profiles are ignored, as they were in training. Nothing that Pillow says reaches the caller.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ptsa_serve.errors import RequestError, TooLarge
from ptsa_serve.images.gif import open_gif
from ptsa_serve.images.jpeg import open_jpeg
from ptsa_serve.images.levels import upright
from ptsa_serve.images.limits import PIXELS_CEILING, Clock, ImageLimits, check_size, damaged
from ptsa_serve.images.pillow import open_avif, open_bmp, open_webp
from ptsa_serve.images.png import open_png
from ptsa_serve.images.sniff import FORMATS, SUFFIXES, sniff
from ptsa_serve.images.source import Source
from ptsa_serve.images.tiff import open_tiff

__all__ = [
    "FORMATS",
    "PIXELS_CEILING",
    "SUFFIXES",
    "Header",
    "ImageLimits",
    "OpenPhoto",
    "Photo",
    "decode",
    "inspect",
    "open_photo",
]

_OPENERS: dict[str, Callable[[bytes, Clock], Source]] = {
    "JPEG": open_jpeg,
    "PNG": open_png,
    "WEBP": open_webp,
    "BMP": open_bmp,
    "TIFF": open_tiff,
    "GIF": open_gif,
    "AVIF": open_avif,
}


@dataclass(frozen=True, slots=True)
class Header:
    """What the header says: width and height of the upright photo, EXIF orientation 1...8, format of `FORMATS`."""

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


@dataclass(frozen=True, slots=True)
class OpenPhoto:
    """A photo whose header is read and allowed, and whose pixels are not decoded yet."""

    header: Header
    source: Source

    def decode(self, at_least: tuple[int, int] | None = None) -> Photo:
        """As the function `decode`."""
        header = self.header
        height, width = at_least or (0, 0)
        try:
            pixels = self.source.pixels((height, width) if header.orientation < 5 else (width, height))
        except (RequestError, MemoryError):
            raise
        except Exception:
            # Damaged files make Pillow's decoders raise nearly anything: OSError, SyntaxError, IndexError,
            # struct.error.
            raise damaged(header.format) from None
        pixels = upright(pixels, header.orientation)
        return Photo(pixels, header.width, header.height, header.orientation, header.format)


def inspect(data: bytes, limits: ImageLimits, *, deadline: float | None = None) -> Header:
    """Read the header and check the limits, without decoding; `deadline` as in `decode`.

    Raises BadImage, UnsupportedMediaType, TooLarge, DeadlineExceeded, or BadParameter for a side too short or too long.
    """
    return open_photo(data, limits, deadline=deadline).header


def decode(
    data: bytes, limits: ImageLimits, *, at_least: tuple[int, int] | None = None, deadline: float | None = None
) -> Photo:
    """The upright photo of `data`.

    With `at_least` (h, w), in upright pixels, a JPEG may come at 1/2, 1/4 or 1/8 of its size, never below (h,
    w): several times faster for large photos. The work ends soon after `deadline`, a time.monotonic() value. Raises as
    `inspect`, and BadImage for pixels that do not decode whole.
    """
    return open_photo(data, limits, deadline=deadline).decode(at_least)


def open_photo(data: bytes, limits: ImageLimits, *, deadline: float | None = None) -> OpenPhoto:
    """The photo of `data`, whose pixels wait for its `decode`. Raises as `inspect`."""
    if len(data) > limits.max_bytes:
        raise TooLarge(f"the file has {len(data)} bytes, at most {limits.max_bytes} are allowed; send a smaller one")
    name = sniff(data)
    try:
        source = _OPENERS[name](data, Clock(deadline))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise TooLarge(f"the photo has more than {limits.max_pixels} pixels; send a smaller one") from None
    except (RequestError, MemoryError):
        raise
    except Exception:
        raise damaged(name) from None
    width, height = source.width, source.height
    if source.orientation >= 5:
        width, height = height, width
    check_size(width, height, limits)
    return OpenPhoto(Header(width, height, source.orientation, name), source)
