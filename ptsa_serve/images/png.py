"""PNG to pixels, whole or not at all.

Its chunks are read here and Pillow gets those that pixels need: texts, profiles and frames of an animation cost
nothing, whatever they would unfold to. The still image is taken, never a frame. Of sBIT, gAMA and the like nothing is
used.
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from isal import igzip_lib
from PIL import Image

from ptsa_serve.errors import BadImage
from ptsa_serve.images.levels import rgb_of, to_8_bit
from ptsa_serve.images.limits import Clock, Watched, damaged
from ptsa_serve.images.sniff import unsupported
from ptsa_serve.images.source import Source
from ptsa_serve.images.tags import orientation

__all__ = ["check_rows", "open_png"]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_END = b"\0\0\0\0IEND\xaeB`\x82"
_NEEDED = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"eXIf"}
_GREY, _RGB, _PALETTE, _GREY_ALPHA, _RGBA = 0, 2, 3, 4, 6
_CHANNELS = {_GREY: 1, _RGB: 3, _PALETTE: 1, _GREY_ALPHA: 2, _RGBA: 4}
_DEPTHS = {_GREY: (1, 2, 4, 8, 16), _RGB: (8, 16), _PALETTE: (1, 2, 4, 8), _GREY_ALPHA: (8, 16), _RGBA: (8, 16)}
# Adam7: first column, first row, step across, step down of each pass.
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
# Encoders write IDAT of 4 KiB and more: 20 MiB have 5,000 of them.
_MAX_CHUNKS = 200_000
_PIECE = 1 << 16
_BAND_ROWS = 256


@dataclass(frozen=True, slots=True)
class _Png:
    width: int
    height: int
    depth: int
    color: int
    interlaced: bool
    chunks: dict[bytes, list[memoryview]]

    def inflated(self) -> int:
        """Bytes of the filtered rows of all passes."""
        bits = self.depth * _CHANNELS[self.color]
        passes = _ADAM7 if self.interlaced else ((0, 0, 1, 1),)
        sizes = [(-(-(self.width - x) // dx), -(-(self.height - y) // dy)) for x, y, dx, dy in passes]
        return sum(rows * (1 + -(-columns * bits // 8)) for columns, rows in sizes if columns > 0 and rows > 0)

    def file(self) -> bytes:
        """The chunks that Pillow needs, the pixels in one; a colour key is for us."""
        names = [b"IHDR", b"PLTE", *([b"tRNS"] if self.color == _PALETTE else [])]
        first = [chunk for name in names for chunk in self.chunks.get(name, [])]
        body = b"".join([b"IDAT", *(chunk[8:-4] for chunk in self.chunks.get(b"IDAT", []))])
        length, checksum = struct.pack(">I", len(body) - 4), struct.pack(">I", zlib.crc32(body))
        return b"".join([_SIGNATURE, *first, length, body, checksum, _END])

    def key(self) -> tuple[int, ...]:
        """The colour that is transparent, at the file's own depth; empty for none."""
        chunk = self.chunks.get(b"tRNS")
        count = {_GREY: 1, _RGB: 3}.get(self.color, 0)
        if not chunk or len(chunk[0]) != 12 + 2 * count:
            return ()
        return tuple(value & ((1 << self.depth) - 1) for value in struct.unpack(f">{count}H", chunk[0][8:-4]))


def open_png(data: bytes, clock: Clock) -> Source:
    """Raises BadImage, UnsupportedMediaType."""
    png = _parse(data, clock)
    exif = png.chunks.get(b"eXIf")
    turn = orientation(bytes(exif[0][8:-4])) if exif else 1
    return Source(png.width, png.height, turn, lambda smallest: _pixels(png, clock))


def check_rows(data: bytes) -> None:
    """Raise BadImage unless the PNG holds every row of its pixels, undamaged; Pillow does not tell."""
    clock = Clock()
    _check_whole(_parse(data, clock), clock)


def _parse(data: bytes, clock: Clock) -> _Png:
    clock.check()
    chunks: dict[bytes, list[memoryview]] = {}
    for name, chunk in _chunks(data):
        if name not in _NEEDED:
            continue
        if name != b"eXIf" and zlib.crc32(chunk[4:-4]) != int.from_bytes(chunk[-4:], "big"):
            raise damaged("PNG")
        chunks.setdefault(name, []).append(chunk)
    header = chunks.get(b"IHDR")
    if not header or len(header[0]) != 25:
        raise damaged("PNG")
    width, height, depth, color, packing, filtering, interlace = struct.unpack(">IIBBBBB", header[0][8:21])
    if not width or not height or packing or filtering or interlace > 1 or depth not in _DEPTHS.get(color, ()):
        raise damaged("PNG")
    return _Png(width, height, depth, color, bool(interlace), chunks)


def _chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Name and bytes (length, name, body, checksum) of each chunk; the end may be missing, or cut."""
    view = memoryview(data)
    at = len(_SIGNATURE)
    for _ in range(_MAX_CHUNKS):
        if at + 12 > len(data):
            return
        length, name = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if name == b"CgBI":
            raise unsupported("found a PNG for iOS applications (CgBI)")
        if name == b"IEND" or end > len(data):
            return
        yield name, view[at:end]
        at = end
    raise BadImage(f"the PNG has more than {_MAX_CHUNKS} chunks; save it anew")


def _check_whole(png: _Png, clock: Clock) -> None:
    """Raise BadImage unless the compressed stream holds every row and ends with its checksum.

    Pillow leaves rows black that a stream, ended early but properly, does not hold.
    """
    expected = png.inflated()
    stream = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_ZLIB)
    found = 0
    for piece in _pieces(png):
        clock.check()
        try:
            found += len(stream.decompress(piece, max_length=_PIECE * 16))
            while not stream.eof and not stream.needs_input and found <= expected + _PIECE:
                found += len(stream.decompress(b"", max_length=_PIECE * 16))
        except igzip_lib.error:  # type: ignore[misc]  # the stubs call it Any
            raise damaged("PNG") from None
        if stream.eof or found > expected + _PIECE:
            break
    if found < expected or not stream.eof:
        raise damaged("PNG")


def _pieces(png: _Png) -> Iterator[memoryview]:
    for chunk in png.chunks.get(b"IDAT", []):
        body = chunk[8:-4]
        for at in range(0, len(body), _PIECE):
            yield body[at : at + _PIECE]


def _pixels(png: _Png, clock: Clock) -> np.ndarray:
    _check_whole(png, clock)
    key = png.key()
    if png.color == _RGB and png.depth == 16 and key:
        return _keyed_16_bit(png, key, clock)
    with Image.open(Watched(png.file(), clock), formats=["PNG"]) as image:
        image.load()
        if png.color == _GREY and png.depth == 16:
            values = np.asarray(image)
            grey = np.repeat(to_8_bit(values, 16)[..., None], 3, axis=2)
            return _without_key(grey, _equal(values[..., None], key)) if key else grey
        pixels = rgb_of(image)
    if key:
        scale = 255 // ((1 << min(png.depth, 8)) - 1)
        return _without_key(pixels, _equal(pixels, tuple(value * scale for value in key)))
    return pixels


def _keyed_16_bit(png: _Png, key: tuple[int, ...], clock: Clock) -> np.ndarray:
    """RGB of 16 bits with a colour key, by OpenCV: Pillow reads the upper bytes alone."""
    values = cv2.imdecode(np.frombuffer(png.file(), np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None:
        raise damaged("PNG")
    pixels = np.empty(values.shape, np.uint8)
    for top in range(0, png.height, _BAND_ROWS):
        clock.check()
        band = cv2.cvtColor(values[top : top + _BAND_ROWS], cv2.COLOR_BGR2RGB)
        pixels[top : top + _BAND_ROWS] = _without_key(to_8_bit(band, 16), _equal(band, key))
    return pixels


def _equal(pixels: np.ndarray, key: tuple[int, ...]) -> np.ndarray:
    """Where pixels (h, w, n) have the colour `key`."""
    found = pixels[..., 0] == key[0]
    for channel, value in enumerate(key[1:], start=1):
        found &= pixels[..., channel] == value
    return found


def _without_key(pixels: np.ndarray, transparent: np.ndarray) -> np.ndarray:
    """White where `transparent`. A maximum, because setting by mask takes ten times as long."""
    return np.maximum(pixels, transparent.astype(np.uint8)[..., None] * np.uint8(255))
