"""A photo whose header is read and whose pixels are not yet: what each format gives."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

__all__ = ["Source"]


@dataclass(frozen=True, slots=True)
class Source:
    """width, height: as stored. orientation: EXIF's, 1...8, still to be applied.

    pixels: from the smallest size (h, w) that will do, as stored, to uint8 (h, w, 3) RGB; (0, 0) asks for the whole.
    Only a JPEG comes smaller. It raises BadImage, DeadlineExceeded, or anything at all for damaged bytes.
    """

    width: int
    height: int
    orientation: int
    pixels: Callable[[tuple[int, int]], np.ndarray]
