"""Lines one pixel wide: the crests of a map of boundaries, and the boundaries of a map of classes."""

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["class_boundaries", "class_edges", "disc", "peaks"]

# A crest may be this much lower than its neighbours across (Dollar and Zitnick, PAMI 2015, non-maximum suppression).
_SLACK = np.float32(1.01)


def peaks(strength: NDArray[np.float32]) -> NDArray[np.float32]:
    """The map (H, W) where it is highest across the line that it follows, 0 elsewhere.

    The direction across is that in which the map, smoothed, bends most.
    """
    smooth = cv2.GaussianBlur(strength, (0, 0), 2)
    xx, yy, xy = (cv2.Sobel(smooth, cv2.CV_32F, *order, ksize=5) for order in ((2, 0), (0, 2), (1, 1)))
    # The larger eigenvalue's direction; the smaller, negative one bends more where their sum is below 0.
    across = np.arctan2(2 * xy, xx - yy) / 2 + np.where(xx + yy < 0, np.float32(np.pi / 2), np.float32(0))
    dx, dy = np.cos(across), np.sin(across)
    x, y = np.meshgrid(*(np.arange(side, dtype=np.float32) for side in strength.shape[::-1]))
    beside = [
        cv2.remap(strength, x + sign * dx, y + sign * dy, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        for sign in (np.float32(1), np.float32(-1))
    ]
    return np.where(strength * _SLACK >= np.maximum(*beside), strength, np.float32(0))


def disc(radius: float) -> NDArray[np.uint8]:
    """The pixels at most `radius` from the middle one, as a structuring element."""
    reach = int(radius)
    y, x = np.ogrid[-reach : reach + 1, -reach : reach + 1]
    return (x**2 + y**2 <= radius**2).astype(np.uint8)


def class_boundaries(classes: NDArray) -> NDArray[np.uint8]:
    """1 where a class (H, W) ends, in lines one pixel wide, 0 elsewhere.

    Pixels with another class beside, above or below, thinned. ASTMT's labels of PASCAL are those where the Laplacian
    of the class numbers is not 0, thinned: the same but for pixels where the numbers happen to cancel.
    """
    edge = np.zeros(classes.shape, bool)
    rows, columns = classes[1:] != classes[:-1], classes[:, 1:] != classes[:, :-1]
    edge[1:] |= rows
    edge[:-1] |= rows
    edge[:, 1:] |= columns
    edge[:, :-1] |= columns
    return _thinned(edge).astype(np.uint8)


def class_edges(classes: NDArray) -> NDArray[np.bool_]:
    """Which pixels (H, W) have another class below or to the right: lines about one pixel wide, in no time."""
    edge = np.zeros(classes.shape, bool)
    edge[:-1] |= classes[1:] != classes[:-1]
    edge[:, :-1] |= classes[:, 1:] != classes[:, :-1]
    return edge


def _thinned(lines: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Lines of any width at a width of one pixel, as connected as they were (Guo and Hall, CACM 1989, algorithm A1)."""
    lines = np.pad(lines, 1)
    while True:
        before = lines.sum()
        for second in (False, True):
            lines[1:-1, 1:-1] &= ~_removable(lines, second)
        if lines.sum() == before:
            return lines[1:-1, 1:-1]


def _removable(lines: NDArray[np.bool_], second: bool) -> NDArray[np.bool_]:
    """Pixels that one half-step of the thinning takes away."""
    height, width = lines.shape
    # Clockwise from the one above.
    steps = ((-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1))
    p = [lines[1 + dy : height - 1 + dy, 1 + dx : width - 1 + dx] for dy, dx in steps]
    crossings = sum((~p[i] & (p[i + 1] | p[(i + 2) % 8])).astype(np.uint8) for i in (0, 2, 4, 6))
    one = sum((p[i - 1] | p[i]).astype(np.uint8) for i in (0, 2, 4, 6))
    other = sum((p[i] | p[i + 1]).astype(np.uint8) for i in (0, 2, 4, 6))
    fewer = np.minimum(one, other)
    guard = (p[4] | p[5] | ~p[7]) & p[6] if second else (p[0] | p[1] | ~p[3]) & p[2]
    return (crossings == 1) & (fewer >= 2) & (fewer <= 3) & ~guard
