"""What the samples of a TIFF's pixel mean: photometric interpretation, extra samples, palettes."""

import numpy as np
from PIL import Image

from ptsa_serve.images.levels import on_white, to_8_bit
from ptsa_serve.images.tags import Directory

__all__ = ["COLORS", "WHITE_IS_ZERO", "from_ycbcr", "to_rgb"]

WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR = 0, 1, 2, 3, 5, 6
# Samples of colour by photometric interpretation; those above are extra.
COLORS = {WHITE_IS_ZERO: 1, _BLACK_IS_ZERO: 1, _RGB: 3, _PALETTE: 1, _CMYK: 4, _YCBCR: 3}
_COLOR_MAP, _EXTRA = 320, 338
_ASSOCIATED, _UNASSOCIATED = 1, 2


def to_rgb(values: np.ndarray, bits: int, photometric: int, photo: Directory) -> np.ndarray:
    """Samples (h, w, n) of `bits` bits, n at least that of `COLORS`, to uint8 (h, w, 3); alpha composed on white.

    An extra sample that the file does not call alpha is none.
    """
    count = COLORS[photometric]
    if photometric == _PALETTE:
        rgb = _palette(photo, bits)[values[..., 0]]
    else:
        colors = to_8_bit(values[..., :count], bits, inverted=photometric == WHITE_IS_ZERO)
        rgb = _from(photometric, colors)
    extra = photo.value(_EXTRA, 0)
    if extra in (_ASSOCIATED, _UNASSOCIATED) and values.shape[-1] > count:
        alpha = to_8_bit(values[..., count : count + 1], bits)
        mode = "RGBA" if extra == _UNASSOCIATED else "RGBa"
        return on_white(_image(np.concatenate([rgb, alpha], axis=2), mode))
    return rgb


def from_ycbcr(values: np.ndarray) -> np.ndarray:
    """uint8 (h, w, 3), Y, Cb and Cr of full range, to RGB."""
    return _converted(values, "YCbCr")


def _from(photometric: int, colors: np.ndarray) -> np.ndarray:
    if photometric == _RGB:
        return colors
    if photometric == _CMYK:
        return _converted(colors, "CMYK")
    return np.repeat(colors, 3, axis=2)


def _converted(values: np.ndarray, mode: str) -> np.ndarray:
    return np.asarray(_image(values, mode).convert("RGB"))


def _image(values: np.ndarray, mode: str) -> Image.Image:
    height, width = values.shape[:2]
    return Image.frombuffer(mode, (width, height), np.ascontiguousarray(values), "raw", mode, 0, 1)


def _palette(photo: Directory, bits: int) -> np.ndarray:
    """uint8 (2^bits, 3). Raises ValueError for a palette that is not there whole."""
    colors = photo.values(_COLOR_MAP).reshape(3, 1 << bits).T
    # Its values have 16 bits; some writers put 8-bit ones there, and others read those too.
    return (colors if colors.max() < 256 else colors >> 8).astype(np.uint8)
