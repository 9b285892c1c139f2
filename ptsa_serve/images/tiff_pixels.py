"""The bytes of a TIFF's blocks to RGB: bits, byte order, predictor, planes, chroma, JPEG."""

from dataclasses import replace

import numpy as np

from ptsa_serve.images.jpeg import stored_pixels
from ptsa_serve.images.jpeg_parts import MAX_WORK, split
from ptsa_serve.images.limits import Clock, damaged
from ptsa_serve.images.sniff import unsupported
from ptsa_serve.images.tiff_blocks import JPEG, YCBCR, Layout
from ptsa_serve.images.tiff_colors import WHITE_IS_ZERO, from_ycbcr, to_rgb

__all__ = ["pixels"]

_PREDICTOR, _JPEG_TABLES = 317, 347


def pixels(layout: Layout, clock: Clock) -> np.ndarray:
    """uint8 (h, w, 3) as stored. Raises BadImage, UnsupportedMediaType, DeadlineExceeded."""
    if layout.compression == JPEG:
        return _from_jpegs(layout, clock)
    out = np.empty((layout.height, layout.width, 3), np.uint8)
    for top, rows, planes in layout.bands(clock):
        if layout.photometric == YCBCR:
            band = from_ycbcr(_chroma(planes[0], layout)[:rows])
        else:
            samples = np.concatenate([_samples(plane, layout) for plane in planes], axis=2)
            band = to_rgb(samples, layout.bits, layout.photometric, layout.photo)
        out[top : top + rows] = band[:, : layout.width]
    return out


def _samples(plane: np.ndarray, layout: Layout) -> np.ndarray:
    """Samples (rows, columns of whole blocks, n) of one band's bytes."""
    rows, columns = len(plane), layout.grid[1]
    count = layout.samples if layout.planes == 1 else 1
    blocks = plane.reshape(rows * columns, -1)
    values = blocks if layout.fax else _unpack(blocks, layout.bits, layout.photo.tags.endian)
    values = values[:, : layout.block[1] * count].reshape(rows * columns, layout.block[1], count)
    if layout.photo.value(_PREDICTOR, 1) == 2 and layout.predicted:
        values = np.cumsum(values, axis=1, dtype=values.dtype)
    return values.reshape(rows, columns * layout.block[1], count)


def _unpack(data: np.ndarray, bits: int, endian: str) -> np.ndarray:
    """Rows of bytes to rows of numbers of `bits` bits, the highest bit first; 16 bits in the file's byte order."""
    if bits == 8:
        return data
    if bits == 16:
        return np.ascontiguousarray(data).view(f"{endian}u2").astype(np.uint16, copy=False)
    single = np.unpackbits(data, axis=1)
    single = single[:, : single.shape[1] // bits * bits].reshape(len(data), -1, bits)
    values = np.zeros(single.shape[:2], np.uint16 if bits > 8 else np.uint8)
    for place in range(bits):
        values = (values << 1) | single[..., place]
    return values


def _chroma(plane: np.ndarray, layout: Layout) -> np.ndarray:
    """Y, Cb, Cr (rows, columns, 3) of units: their brightnesses row by row, then one Cb and one Cr."""
    down, across = layout.units
    units = plane.reshape(len(plane), -1, down * across + 2)
    y = units[..., :-2].reshape(*units.shape[:2], down, across).swapaxes(1, 2)
    y = y.reshape(len(plane) * down, -1)
    shared = units[..., -2:].repeat(down, axis=0).repeat(across, axis=1)
    whole = np.dstack([y, shared])
    # Blocks whose width is no multiple of the units' are padded each on its own.
    padded = -(-layout.block[1] // across) * across
    return whole.reshape(len(whole), layout.grid[1], padded, 3)[:, :, : layout.block[1]].reshape(len(whole), -1, 3)


def _from_jpegs(layout: Layout, clock: Clock) -> np.ndarray:
    """Each block is a JPEG of its own, whose tables may be in a tag. Raises as `pixels`."""
    tables = layout.photo.values(_JPEG_TABLES).astype(np.uint8).tobytes()
    out = np.empty((layout.height, layout.width, 3), np.uint8)
    height, width = layout.block
    work = 0
    for index in range(layout.grid[0] * layout.grid[1]):
        top, left = index // layout.grid[1] * height, index % layout.grid[1] * width
        room = out[top : top + height, left : left + width]
        parts = split(layout.data(index, height), tables)
        frame = parts.frame
        if len(frame.sampling) != layout.samples:
            raise unsupported("found a TIFF with an unusual order of samples")
        if not (room.shape[0] <= frame.height <= height and room.shape[1] <= frame.width <= width):
            raise damaged("TIFF")
        work += parts.work()
        if work > MAX_WORK:
            raise unsupported("found a TIFF of JPEGs with very many scans")
        # The tag decides what the components are, not what libjpeg would guess.
        parts = replace(parts, jfif=False, adobe=0 if layout.photometric != YCBCR else 1)
        block = stored_pixels(parts, (0, 0), clock, inverted=False)
        if layout.photometric == WHITE_IS_ZERO:
            block = 255 - block
        room[:] = block[: room.shape[0], : room.shape[1]]
    return out
