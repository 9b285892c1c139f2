"""GIF to pixels: the first frame, whole or not at all."""

import struct
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ptsa_serve.errors import BadImage
from ptsa_serve.images.levels import rgb_of
from ptsa_serve.images.limits import Clock, Watched, damaged
from ptsa_serve.images.source import Source

__all__ = ["open_gif"]

_EXTENSION, _CONTROL, _FRAME = 0x21, 0xF9, 0x2C
# Blocks before the first frame; a megabyte of XMP in a GIF has 4,000.
_MAX_BLOCKS = 100_000


@dataclass(frozen=True, slots=True)
class _Gif:
    """A GIF up to its first frame: header with palette, graphic control, all from the frame on."""

    head: bytes
    control: bytes
    frame: bytes

    def opened(self, control: bytes, clock: Clock) -> Image.Image:
        data = b"".join([self.head, b"!\xf9\x04", control, b"\0", self.frame])
        return Image.open(Watched(data, clock), formats=["GIF"])


def open_gif(data: bytes, clock: Clock) -> Source:
    """Raises BadImage."""
    clock.check()
    try:
        gif = _first_frame(data)
    except IndexError:
        raise damaged("GIF") from None
    image = gif.opened(gif.control, clock)

    def pixels(smallest: tuple[int, int]) -> np.ndarray:
        del smallest
        _check_whole(gif, clock)
        return rgb_of(image)

    return Source(*image.size, 1, pixels)


def _first_frame(data: bytes) -> _Gif:
    """Raises BadImage, and IndexError where the file ends before the frame."""
    head = at = 13 + _palette(data[10])
    control = b"\0\0\0\0"
    for _ in range(_MAX_BLOCKS):
        if data[at] == _FRAME:
            return _Gif(data[:head], control, data[at:])
        if data[at] != _EXTENSION:
            # Bytes to spare between blocks.
            at += 1
            continue
        if data[at + 1] == _CONTROL and data[at + 2] == 4:
            control = data[at + 3 : at + 7]
        at = _after_blocks(data, at + 2)
    raise BadImage(f"the GIF has more than {_MAX_BLOCKS} blocks before its first frame; save it anew as PNG")


def _after_blocks(data: bytes, at: int) -> int:
    while data[at]:
        at += 1 + data[at]
    return at + 1


def _palette(flags: int) -> int:
    """Bytes of the palette that a header's `flags` announce."""
    return 3 << (1 + (flags & 7)) if flags & 0x80 else 0


def _check_whole(gif: _Gif, clock: Clock) -> None:
    """Raise BadImage for rows that are missing: Pillow leaves the transparent index there, and does not tell."""
    x, y, width, height = struct.unpack_from("<HHHH", gif.frame, 1)
    found = []
    for index in (0, 1):
        with gif.opened(bytes([1, 0, 0, index]), clock) as image:
            found.append(np.asarray(image)[y : y + height, x : x + width])
    if not np.array_equal(*found):
        raise damaged("GIF")
