"""Maps as colours that people can read: uint8 (H, W, 3) sRGB."""

from functools import cache

import cv2
import numpy as np
from cmap import Colormap

from ptsa_serve.tasks import Task

__all__ = ["blend", "colorize", "palette"]

# Perceptually uniform and readable in grey and with colour blindness; bright at its upper end, where near is
# put.
_DEPTH_MAP = "bids:magma"
# Depth is stretched between these percentiles of the map, so that one stray pixel does not flatten the rest.
_PERCENTILES = (1, 99)
_ROWS = 64


def palette(task: Task) -> np.ndarray:
    """Colours of the class indices, uint8 (classes, 3)."""
    return np.array(task.colors, np.uint8)


def colorize(task: Task, values: np.ndarray) -> np.ndarray:
    """The map `values` of `task` (see `Prediction`) in colours, uint8 (H, W, 3).

    Classes take their own colours; depth a uniform colour map, near is bright, in the logarithm, between the
    1st and 99th percentile; normals the RGB code of the contract; probability and
    boundary grey, 1 is white.
    """
    match task.kind:
        case "classes":
            table = np.zeros((256, 3), np.uint8)
            table[: len(task.colors)] = task.colors
            return cv2.applyColorMap(values, table[:, None])
        case "metres":
            return cv2.applyColorMap(_nearness(values), _depth_table()[:, None])
        case "unit_vectors":
            return cv2.convertScaleAbs(values, alpha=127.5, beta=127.5)
        case "probability" | "boundary":
            grey = cv2.convertScaleAbs(values, alpha=255)
            return cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB)


def blend(colors: np.ndarray, photo: np.ndarray, opacity: float) -> np.ndarray:
    """`colors` over `photo`, both uint8 (H, W, 3) of one size; opacity 0 is the photo, 1 the colours."""
    return cv2.addWeighted(colors, opacity, photo, 1 - opacity, 0)


def _nearness(depth: np.ndarray) -> np.ndarray:
    """uint8 (H, W): 255 for the nearest, 0 for the farthest, even steps in the logarithm."""
    # Every fourth pixel of each axis tells the percentiles as well as all of them, in a sixteenth of the
    # time.
    near, far = np.log(np.maximum(np.percentile(depth[::4, ::4], _PERCENTILES), 1e-3))
    scale = 255 / max(far - near, 1e-6)
    near_255 = np.empty(depth.shape, np.uint8)
    # A few rows at a time: whole, the steps in between take six times the map's bytes.
    for start in range(0, len(depth), _ROWS):
        logs = cv2.log(np.maximum(depth[start : start + _ROWS], np.float32(1e-3)))
        near_255[start : start + _ROWS] = np.clip(np.rint((far - logs) * scale), 0, 255)
    return near_255


@cache
def _depth_table() -> np.ndarray:
    return np.ascontiguousarray(np.rint(Colormap(_DEPTH_MAP).lut(256)[:, :3] * 255).astype(np.uint8))
