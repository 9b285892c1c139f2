"""Strips and tiles of a TIFF to bytes.

libtiff unpacks them, through Pillow: each band of blocks goes to it as a little TIFF of its own that calls every byte
a grey pixel. So Pillow's choice of modes, which leaves out many kinds of TIFF and reads some of them wrongly, plays no
part; memory is that of a band; and the clock is looked at between bands.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image

from ptsa_serve.images.limits import PIXELS_CEILING, Clock, Watched, damaged
from ptsa_serve.images.sniff import unsupported
from ptsa_serve.images.tags import Directory

__all__ = ["JPEG", "UNPACKED", "YCBCR", "Layout"]

YCBCR = 6
JPEG = 7
_NONE, _FAX = 1, (2, 3, 4)
# No compression, CCITT, LZW, deflate (two numbers), PackBits, Zstandard.
_PREDICTING = {5, 8, 32946, 50000}
UNPACKED = {_NONE, *_FAX, 5, 8, 32946, 32773, 50000}

# Rows of one band, at least: few enough to end soon after a deadline, many enough that Pillow's start costs little.
_BAND_ROWS = 256
# A photo of 40 megapixels in tiles of 64 x 64 has 10,000. One block costs microseconds, one of JPEG a tenth of a
# millisecond.
_MAX_BLOCKS = {JPEG: 20_000}
_MAX_BLOCKS_ELSE = 100_000
# Bytes of a pixel: five samples of 16 bits (CMYK with alpha).
_MAX_PIXEL_BYTES = 10


@dataclass(frozen=True)
class Layout:
    """How the pixels of one image lie in the file. block: (h, w) of a strip or tile. planes: 1, or one for a sample.

    samples: all of a pixel, `extra` says what those above the colours are. units: (h, w) pixels that share one pair
    of chroma samples.
    """

    photo: Directory
    width: int
    height: int
    bits: int
    samples: int
    compression: int
    photometric: int
    block: tuple[int, int]
    planes: int
    units: tuple[int, int]
    tiled: bool

    @classmethod
    def of(cls, photo: Directory, bits: int, compression: int, photometric: int) -> "Layout":
        """Raises BadImage, UnsupportedMediaType."""
        width, height, samples = photo.value(256, 0), photo.value(257, 0), photo.value(277, 1)
        tiled = 322 in photo
        block = (photo.value(323, 0), photo.value(322, 0)) if tiled else (photo.value(278, height) or height, width)
        block = (block[0] if tiled else min(block[0], height), block[1])
        units = (1, 1)
        if photometric == YCBCR and compression != JPEG:
            across, down = (*photo.values(530).tolist(), 2, 2)[:2] if 530 in photo else (2, 2)
            units = (down, across)
        planes = samples if photo.value(284, 1) == 2 else 1
        layout = cls(photo, width, height, bits, samples, compression, photometric, block, planes, units, tiled)
        layout._check()
        return layout

    def _check(self) -> None:
        if min(self.width, self.height, *self.block, self.samples) < 1 or not set(self.units) <= {1, 2, 4}:
            raise damaged("TIFF")
        rows, columns = self.grid
        padded = rows * self.block[0] * columns * self.block[1]
        if padded > max(4 * self.width * self.height, PIXELS_CEILING) or padded > 4 * PIXELS_CEILING:
            raise unsupported("found a TIFF whose tiles are far larger than its photo")
        if rows * columns * self.planes > _MAX_BLOCKS.get(self.compression, _MAX_BLOCKS_ELSE):
            raise unsupported("found a TIFF of very many strips or tiles")
        if self.samples * self.bits > _MAX_PIXEL_BYTES * 8:
            raise unsupported(f"found a TIFF with {self.samples} samples of {self.bits} bits a pixel")
        subsampled = self.photometric == YCBCR and self.compression != JPEG
        if (
            (subsampled and (self.planes > 1 or self.bits != 8 or self.samples != 3))
            or (self.compression == JPEG and self.planes > 1)
            or (self.compression in _FAX and (self.bits, self.samples) != (1, 1))
        ):
            raise unsupported("found a TIFF with an unusual order of samples")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of blocks."""
        return -(-self.height // self.block[0]), -(-self.width // self.block[1])

    @property
    def fax(self) -> bool:
        """Whether libtiff gives a pixel for every bit."""
        return self.compression in _FAX

    @property
    def predicted(self) -> bool:
        """Whether the packing is one of those that can store differences of neighbours."""
        return self.compression in _PREDICTING

    @cached_property
    def _places(self) -> tuple[np.ndarray, np.ndarray]:
        """Offsets and lengths of all blocks."""
        offsets, counts = self.photo.values(324 if self.tiled else 273), self.photo.values(325 if self.tiled else 279)
        blocks = self.grid[0] * self.grid[1] * self.planes
        if len(counts) < blocks and self.compression == _NONE:
            # Some writers leave them out.
            counts = np.zeros(blocks, np.int64)
        if len(offsets) < blocks or len(counts) < blocks:
            raise damaged("TIFF")
        return offsets, counts

    def row_bytes(self) -> int:
        """Bytes of one row of a block (of one row of units, where samples share chroma)."""
        down, across = self.units
        if self.photometric == YCBCR and self.compression != JPEG:
            return -(-self.block[1] // across) * (down * across + 2)
        samples = self.samples if self.planes == 1 else 1
        return -(-self.block[1] * samples * self.bits // 8)

    def data(self, index: int, rows: int) -> bytes:
        """The packed bytes of block `index`, which has `rows` rows of bytes. Raises BadImage where they are missing."""
        offset, count = (int(values[index]) for values in self._places)
        needed = rows * self.row_bytes()
        if self.compression == _NONE:
            if 0 < count < needed:
                raise damaged("TIFF")
            count = needed
        file = self.photo.tags.data
        # CCITT may make four times as much of noise, the others less: what a block claims above that is not read.
        found = file[offset : offset + min(count, 8 * needed + 4096)] if offset > 0 else b""
        if not found or (self.compression == _NONE and len(found) < needed):
            raise damaged("TIFF")
        return found

    def bands(self, clock: Clock) -> Iterator[tuple[int, int, list[np.ndarray]]]:
        """First row, rows, and bytes of each plane: uint8 (rows of units, bytes), columns of blocks side by side."""
        rows, columns = self.grid
        step = max(1, _BAND_ROWS // self.block[0])
        for first in range(0, rows, step):
            last = min(first + step, rows)
            top, bottom = first * self.block[0], min(last * self.block[0], self.height)
            planes = []
            for plane in range(self.planes):
                clock.check()
                indices = range((plane * rows + first) * columns, (plane * rows + last) * columns)
                planes.append(self._unpacked(indices, bottom - top, clock))
            # A strip may be the whole photo: what becomes of its bytes takes several times their memory.
            for start in range(0, bottom - top, _BAND_ROWS):
                clock.check()
                units = slice(start // self.units[0], (start + _BAND_ROWS) // self.units[0])
                yield top + start, min(_BAND_ROWS, bottom - top - start), [plane[units] for plane in planes]

    def _unpacked(self, indices: range, rows: int, clock: Clock) -> np.ndarray:
        """The bytes of blocks `indices`, whole rows of blocks that hold `rows` rows of the photo."""
        down = self.units[0]
        block_rows = -(-self.block[0] // down)
        unit_rows = -(-rows // down)
        columns = self.grid[1]
        # A strip at the end is shorter; tiles never are.
        short = unit_rows - block_rows * (len(indices) // columns - 1)
        heights = [block_rows if self.tiled or index != indices[-1] else short for index in indices]
        blocks = [self.data(index, height) for index, height in zip(indices, heights, strict=True)]
        fax = self.fax
        width = (self.block[1] if fax else self.row_bytes()) * columns
        height = block_rows * (len(indices) // columns) if self.tiled else unit_rows
        entries = {256: width, 257: height, 258: 1 if fax else 8, 259: self.compression, 262: 1, 277: 1}
        entries |= {tag: self.photo.value(tag, 1) for tag in (266,) if tag in self.photo}
        entries |= {tag: self.photo.value(tag, 0) for tag in (292, 293) if fax and tag in self.photo}
        if self.tiled:
            entries |= {322: width // columns, 323: block_rows}
        else:
            entries |= {278: block_rows}
        file = Watched(_tiff(entries, blocks, (324, 325) if self.tiled else (273, 279)), clock)
        with Image.open(file, formats=["TIFF"]) as image:
            file.header_done()
            return np.asarray(image).astype(np.uint8, copy=False)[:unit_rows]


def _tiff(entries: dict[int, int], blocks: list[bytes], places: tuple[int, int]) -> bytes:
    """A TIFF of `blocks`, with `entries` as its tags of one value and the blocks' offsets and lengths as `places`."""
    lengths = np.array([len(block) for block in blocks], "<u4")
    offsets = (8 + np.concatenate([[0], np.cumsum(lengths[:-1])])).astype("<u4")
    body = b"".join(blocks)
    arrays = 8 + len(body)
    directory = arrays + 8 * len(blocks)
    lines = {tag: struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries.items()}
    for tag, values, at in ((places[0], offsets, arrays), (places[1], lengths, arrays + 4 * len(blocks))):
        lines[tag] = struct.pack("<HHII", tag, 4, len(blocks), int(values[0]) if len(blocks) == 1 else at)
    table = struct.pack("<H", len(lines)) + b"".join(lines[tag] for tag in sorted(lines)) + bytes(4)
    return struct.pack("<2sHI", b"II", 42, directory) + body + offsets.tobytes() + lengths.tobytes() + table
