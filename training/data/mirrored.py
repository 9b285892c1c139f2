"""Are labels mirrored? Where a label changes, the photo mostly changes too; where its mirror image does, by chance."""

from collections.abc import Sequence
from math import comb

import cv2
import numpy as np
from numpy.typing import NDArray

from ptsa_serve.tasks import Kind

__all__ = ["mirror_fits_better", "surely_mirrored"]

# Of the sign test: less than one in a thousand sets whose labels have nothing to do with the photos is called mirrored.
_CHANCE = 1e-3


def mirror_fits_better(image: NDArray[np.uint8], kind: Kind, label: NDArray) -> bool | None:
    """Whether the mirrored label's steps lie on stronger edges of the photo; None for a label without steps."""
    steps = _steps(kind, label)
    if not steps.any():
        return None
    grey = cv2.GaussianBlur(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32), (0, 0), 1)
    strength = np.hypot(cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1))
    strength = np.minimum(strength, np.percentile(strength, 95))
    return bool(strength[steps[:, ::-1]].mean() > strength[steps].mean())


def surely_mirrored(votes: Sequence[bool]) -> bool:
    """Whether so many of the photos fit better in the mirror that chance does not explain it (sign test)."""
    count, mirrored = len(votes), sum(votes)
    return sum(comb(count, k) for k in range(mirrored, count + 1)) < _CHANCE * 2**count


def _steps(kind: Kind, label: NDArray) -> NDArray[np.bool_]:
    """Where a label (H, W) or (H, W, 3) changes from a pixel to the next."""
    match kind:
        case "boundary":
            return label == 1
        case "classes" | "probability":
            value, step = label[..., None].astype(np.float32), 0.5
        case "metres":
            value, step = np.log(np.maximum(label, 0.1))[..., None], 0.1
        case "unit_vectors":
            value, step = label, 0.5
    steps = np.zeros(label.shape[:2], bool)
    steps[:, 1:] |= np.abs(np.diff(value, axis=1)).max(-1) > step
    steps[1:] |= np.abs(np.diff(value, axis=0)).max(-1) > step
    return steps
