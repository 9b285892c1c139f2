"""Between the photo's grid and the model's: down (antialiased), and back up.

One convention throughout: pixel centres at half integers (`align_corners=False`), edges repeated.

Why two libraries: Pillow's bilinear widens with the scale and so does not alias; it made the training photos
too. OpenCV scales float maps 10 to 35 times faster, which Pillow does plane by plane. Milliseconds from 512 x
384 to 640 x 480, one thread, least of 60, two shared cores of an AMD EPYC: one float plane 0.10 (OpenCV) against 0.97
(Pillow), three interleaved planes 0.21 against 7.7; four maps 0.6 against 10. Both release the interpreter
lock.
"""

from typing import Literal

import cv2
import numpy as np
from PIL import Image

from ptsa_serve.tasks import Kind

__all__ = ["Grid", "nearest", "shrink", "stretch"]

Grid = Literal["photo", "model"]

# Several requests are scaled side by side already; OpenCV's own threads would only take the model's cores.
cv2.setNumThreads(1)

_EPSILON = np.float32(1e-6)
_SUM = np.ones((1, 3), np.float32)
_ROWS = 32


def shrink(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A photo uint8 (h, w, 3) at `size` (H, W), bilinear with antialiasing."""
    if pixels.shape[:2] == size:
        return pixels
    height, width = size
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))


def stretch(values: np.ndarray, size: tuple[int, int], kind: Kind) -> np.ndarray:
    """A map (h, w[, 3]) at `size` (H, W), dtype kept: classes nearest, all else bilinear, vectors made unit
    again.
    """
    if values.shape[:2] == size:
        return values
    if kind == "classes":
        return nearest(values, size)
    # For photos smaller than the model's grid: the mean of the cells that a pixel covers.
    smaller = size[0] <= values.shape[0] and size[1] <= values.shape[1]
    scaled = cv2.resize(values, size[::-1], interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR)
    return _unit(scaled) if kind == "unit_vectors" else scaled


def nearest(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The value whose cell holds the centre of each pixel, in whole numbers (OpenCV's own is off by one at ties)."""
    rows, columns = (
        (np.arange(target) * 2 + 1) * source // (2 * target)
        for target, source in zip(size, values.shape[:2], strict=True)
    )
    # Whole rows are copied at once: last, when there are many.
    return values.take(columns, axis=1).take(rows, axis=0)


def _unit(vectors: np.ndarray) -> np.ndarray:
    """float32 (H, W, 3) at length 1, in place; what cancels to nothing becomes 0.

    A few rows at a time, which stay in the cache: half the time of whole axes in NumPy, a ninth of `np.linalg.norm`.
    """
    for start in range(0, len(vectors), _ROWS):
        block = vectors[start : start + _ROWS]
        length = cv2.sqrt(cv2.transform(cv2.multiply(block, block), _SUM))
        inverse = 1 / np.maximum(length, _EPSILON)
        cv2.multiply(block, cv2.merge((inverse, inverse, inverse)), block)
    return vectors
