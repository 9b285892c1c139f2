"""TIFF: which of its images is the photo, and what that one's pixels mean.

Tags are read here and decide everything; Pillow only unpacks the bytes (see `tiff_blocks`). Numbers: TIFF 6.0, TIFF/EP
and DNG.
"""

import struct
from collections.abc import Iterator

from ptsa_serve.errors import UnsupportedMediaType
from ptsa_serve.images.limits import Clock, damaged
from ptsa_serve.images.sniff import camera_raw, unsupported
from ptsa_serve.images.source import Source
from ptsa_serve.images.tags import ORIENTATION, Directory, Tags
from ptsa_serve.images.tiff_blocks import JPEG, UNPACKED, Layout
from ptsa_serve.images.tiff_colors import COLORS
from ptsa_serve.images.tiff_pixels import pixels

__all__ = ["open_tiff"]

_SUBFILE, _OLD_SUBFILE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 254, 255, 256, 257, 258, 259, 262
_SUB_DIRECTORIES, _FORMAT = 330, 339
# A copy of reduced size, a transparency mask: not the photo.
_NOT_THE_PHOTO = 1 | 4
_SENSOR = {32803, 34892}  # colour filter array, linear raw
_SENSOR_TAGS = (33421, 33422, 50706)  # its pattern; DNGVersion
_SENSOR_COMPRESSIONS = {32767, 32769, 32770, 32867, 34713, 65000, 65535}  # Sony, Epson, Samsung, Kodak, Nikon, Pentax
_SENSOR_STARTS = (b"CR\2", b"IIII", b"MMMM")  # Canon CR2, Phase One: behind the TIFF's own start
# Images that are looked at; a camera raw has fewer than ten.
_MAX_DIRECTORIES = 64


def open_tiff(data: bytes, clock: Clock) -> Source:
    """Raises BadImage, UnsupportedMediaType, and ValueError or struct.error for a damaged header."""
    clock.check()
    tags = Tags(data)
    directories = list(_directories(tags))
    if data[8:16].startswith(_SENSOR_STARTS) or any(map(_is_raw, directories)):
        raise camera_raw()
    photo = next((each for each in directories if not _is_copy(each)), None)
    if photo is None:
        raise unsupported("found a TIFF with nothing but a reduced copy (a thumbnail) of its photo")
    layout = _layout(photo)
    turn = photo.value(ORIENTATION, directories[0].value(ORIENTATION, 1))
    return Source(layout.width, layout.height, turn if 1 <= turn <= 8 else 1, lambda smallest: pixels(layout, clock))


def _directories(tags: Tags) -> Iterator[Directory]:
    """All images, those in sequence first, then those below them. Raises for the first one alone."""
    yield (first := tags.directory(tags.first()))
    seen = {tags.first(), 0}
    chain, below = [first.next], list(first.values(_SUB_DIRECTORIES)[:_MAX_DIRECTORIES])
    while (chain or below) and len(seen) < _MAX_DIRECTORIES:
        at = int(chain.pop() if chain else below.pop(0))
        if at in seen:
            continue
        seen.add(at)
        try:
            directory = tags.directory(at)
            below += list(directory.values(_SUB_DIRECTORIES)[:_MAX_DIRECTORIES])
        except (ValueError, struct.error):
            continue
        chain.append(directory.next)
        yield directory


def _is_raw(directory: Directory) -> bool:
    return (
        directory.value(_PHOTOMETRIC, -1) in _SENSOR
        or directory.value(_COMPRESSION, 1) in _SENSOR_COMPRESSIONS
        or any(tag in directory for tag in _SENSOR_TAGS)
    )


def _is_copy(directory: Directory) -> bool:
    return bool(directory.value(_SUBFILE, 0) & _NOT_THE_PHOTO) or directory.value(_OLD_SUBFILE, 1) == 2


def _layout(photo: Directory) -> Layout:
    """Raises UnsupportedMediaType for pixels that have no one meaning, BadImage for tags that contradict."""
    compression, photometric = photo.value(_COMPRESSION, 1), photo.value(_PHOTOMETRIC, -1)
    bits = set(photo.values(_BITS).tolist()) or {1}
    if compression not in UNPACKED and compression != JPEG:
        raise unsupported(f"found a TIFF whose pixels are packed in a way that is not read (compression {compression})")
    plain = set(photo.values(_FORMAT).tolist()) <= {1, 4}
    if photometric not in COLORS or len(bits) != 1 or max(bits) > 16 or not plain:
        raise UnsupportedMediaType(
            f"found a TIFF with pixels of {sorted(bits)} bits and the kind {photometric} (32-bit, signed, fractions or "
            "L*a*b*), which have no one brightness; save the photo with 8 or 16 bits a channel, grey or RGB"
        )
    layout = Layout.of(photo, bits.pop(), compression, photometric)
    if not layout.width or not layout.height or layout.bits < 1 or layout.samples < COLORS[photometric]:
        raise damaged("TIFF")
    return layout
