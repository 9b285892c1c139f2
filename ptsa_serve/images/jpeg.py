"""JPEG to pixels, whole or not at all: libjpeg goes on after damage, with grey where data is missing."""

import re
from collections.abc import Callable, Iterator

import numpy as np
import simplejpeg
from PIL import Image

from ptsa_serve.images.jpeg_parts import MAX_WORK, Parts, split
from ptsa_serve.images.limits import Clock, damaged
from ptsa_serve.images.sniff import unsupported
from ptsa_serve.images.source import Source
from ptsa_serve.images.tags import orientation

__all__ = ["open_jpeg", "stored_pixels"]

_SPARE = re.compile(r"(\d+) extraneous bytes before marker 0x(\w\w)")
# Bytes to spare behind a scan, of any value, that are no sign of damage; zeros may be more.
_FEW = 4


def open_jpeg(data: bytes, clock: Clock) -> Source:
    """Raises BadImage, UnsupportedMediaType."""
    clock.check()
    parts = split(data)
    frame = parts.frame
    return Source(
        frame.width, frame.height, orientation(parts.exif), lambda smallest: stored_pixels(parts, smallest, clock)
    )


def stored_pixels(parts: Parts, smallest: tuple[int, int], clock: Clock, *, inverted: bool = True) -> np.ndarray:
    """Pixels uint8 (h, w, 3), RGB, at a power of two below the whole size but not below `smallest` (h, w).

    (0, 0) asks for the whole. `inverted`: CMYK tells how much ink is missing, as Adobe's JPEGs do and all after them.
    Raises BadImage where pixels are missing or damaged.
    """
    frame = parts.frame
    scale = _scale((frame.height, frame.width), smallest)
    target = (-(-frame.height // scale), -(-frame.width // scale))
    colors = "CMYK" if len(frame.sampling) == 4 else "RGB"

    def read(candidate: Parts) -> np.ndarray:
        clock.check()
        return simplejpeg.decode_jpeg(candidate.clean(), colors, min_height=target[0], min_width=target[1])

    pixels = _whole(parts, read)
    if colors == "CMYK":
        pixels = 255 - pixels if inverted else pixels
        image = Image.frombuffer("CMYK", pixels.shape[1::-1], pixels, "raw", "CMYK", 0, 1)
        return np.asarray(image.convert("RGB"))
    return pixels


def _whole(parts: Parts, read: Callable[[Parts], np.ndarray]) -> np.ndarray:
    """What `read` gives for `parts` without any warning, maybe less bytes to spare behind their scans."""
    tries = MAX_WORK // max(1, parts.work())
    fault = ""
    candidates = iter((parts,))
    while (candidate := next(candidates, None)) is not None and tries > 0:
        tries -= 1
        try:
            return read(candidate)
        except ValueError as error:
            if "subsampling" in str(error):
                # TurboJPEG reads the usual factors alone; Pillow reads all, and does not tell damage.
                raise unsupported("found a JPEG with unusual factors of chroma sampling") from None
            if str(error) != fault:
                # The first warning is another one: what was cut was to spare.
                fault = str(error)
                candidates = _shortened(candidate, fault)
    raise damaged("JPEG")


def _shortened(parts: Parts, fault: str) -> Iterator[Parts]:
    """`parts` without the bytes to spare that libjpeg's warning `fault` counts, for each scan that they may follow."""
    spare = _SPARE.search(fault)
    if spare is None:
        return
    count, marker = int(spare[1]), int(spare[2], 16)
    for index, scan in enumerate(parts.scans):
        tail = scan.data[-count:]
        if parts.marker_after(index) == marker and len(tail) == count and (count <= _FEW or not tail.strip(b"\0")):
            yield parts.shortened(index, count)


def _scale(stored: tuple[int, int], smallest: tuple[int, int]) -> int:
    """The largest of 8, 4, 2, 1 that leaves `stored` at least `smallest` (0, 0 asks for the whole)."""
    if smallest == (0, 0):
        return 1
    return next((k for k in (8, 4, 2) if all(a // k >= b for a, b in zip(stored, smallest, strict=True))), 1)
