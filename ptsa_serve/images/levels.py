"""Values of pixels to 8-bit RGB: bits, alpha, orientation."""

from functools import cache

import numpy as np
from PIL import Image

__all__ = ["on_white", "rgb_of", "to_8_bit", "upright"]


def to_8_bit(values: np.ndarray, bits: int, *, inverted: bool = False) -> np.ndarray:
    """Unsigned `values` of `bits` bits (at most 16) to uint8, rounded; `inverted` where 0 is white."""
    return _table(bits, inverted)[values]


@cache
def _table(bits: int, inverted: bool) -> np.ndarray:
    top = (1 << bits) - 1
    table = (np.arange(top + 1) * 255 + top // 2) // top
    return (255 - table if inverted else table).astype(np.uint8)


def on_white(image: Image.Image) -> np.ndarray:
    """uint8 (h, w, 3) of an image with transparency, composed on white."""
    rgba = image.convert("RGBA")
    return np.asarray(Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB"))


def rgb_of(image: Image.Image) -> np.ndarray:
    """uint8 (h, w, 3) of an 8-bit image of any mode."""
    if image.has_transparency_data:
        return on_white(image)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels (h, w, 3), contiguous, turned as EXIF says (its specification, tag 274)."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    # After the transposition: which of rows and columns still run backwards.
    backwards = {2: (1, -1), 3: (-1, -1), 4: (-1, 1), 6: (1, -1), 7: (-1, -1), 8: (-1, 1)}
    rows, columns = backwards.get(orientation, (1, 1))
    return np.ascontiguousarray(pixels[::rows, ::columns])
