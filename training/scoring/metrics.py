"""Figures of quality, counted over a whole split, never averaged over batches. One class a task kind.

`update(map, label)` takes one photo at the label's size, NumPy, in the units of the artifact's maps; pixels without a
label, and so photos without one, do not count. `compute()` gives figures by name, None where nothing had a label.
Protocols: mIoU from one confusion matrix; F of the edges between classes (Csurka et al., BMVC 2013, of all classes at
once); RMSE over all labelled pixels of the split, and again with each map scaled to its label's median, which asks for
the shape alone; mean angle over all labelled pixels (atan2 form, exact near 0); saliency IoU at 0.5 a photo, 1 where
neither map nor label holds anything, averaged over photos; max-F with beta² = 0.3 over 255 thresholds of the mean
precision and recall (Achanta et al., CVPR 2009), a photo's precision or recall being 1 where it is a share of nothing;
boundary F as in `Boundary`.
"""

import math
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from ptsa_serve.tasks import Task
from training.data.labels import labelled
from training.scoring.boundaries import class_edges, disc, peaks

__all__ = ["Figures", "Metric", "metric_for"]

Figures = dict[str, float | None]


class Metric(Protocol):
    def update(self, predicted: NDArray, label: NDArray) -> None: ...
    def compute(self) -> Figures: ...


def metric_for(task: Task, *, tolerance: float = 0.0075) -> Metric:
    """A fresh metric for a task. tolerance: of boundaries and edges, the part of the diagonal that they may be off."""
    match task.kind:
        case "classes":
            return Confusion(task, tolerance)
        case "metres":
            return DepthError()
        case "unit_vectors":
            return Angle()
        case "probability":
            return Saliency()
        case "boundary":
            return Boundary(tolerance)


class Confusion:
    """mIoU over classes that occur in labels or predictions, pixel accuracy, and F of edges; per cent.

    An edge is right if the other side has one within `tolerance` of the diagonal, 3 pixels at 320 x 240. Edges that
    near to pixels without a label do not count.
    """

    def __init__(self, task: Task, tolerance: float) -> None:
        self._n = len(task.classes)
        self._tolerance = tolerance
        self._matrix = np.zeros((self._n, self._n), np.int64)
        self._found = self._right = self._true = self._met = 0

    def update(self, predicted: NDArray, label: NDArray) -> None:
        valid = labelled("classes", label)
        pairs = label[valid].astype(np.int64) * self._n + predicted[valid]
        self._matrix += np.bincount(pairs, minlength=self._n**2).reshape(self._n, self._n)
        near = disc(self._tolerance * math.hypot(*label.shape))
        inside = cv2.erode(valid.astype(np.uint8), near) > 0
        found, true = class_edges(predicted), class_edges(label)
        self._found += int((found & inside).sum())
        self._right += int((found & inside & _within(true, near)).sum())
        self._true += int((true & inside).sum())
        self._met += int((true & inside & _within(found, near)).sum())

    def compute(self) -> Figures:
        hit = self._matrix.diagonal()
        union = self._matrix.sum(0) + self._matrix.sum(1) - hit
        present = union > 0
        return {
            "mIoU_percent": _mean((100 * hit[present] / union[present]).sum(), present.sum()),
            "pixel_accuracy_percent": _mean(100 * hit.sum(), self._matrix.sum()),
            "edge_F_percent": self._edge_f(),
        }

    def _edge_f(self) -> float | None:
        if not self._true:
            return None
        precision, recall = float(_share(self._right, self._found)), self._met / self._true
        return 200 * precision * recall / max(precision + recall, 1e-12)


class DepthError:
    """Root mean square error in metres, mean relative error, share within a factor of 1.25.

    `aligned`: of maps of which each is scaled to have its label's median.
    """

    def __init__(self) -> None:
        self._square = self._relative = self._near = self._n = 0.0
        self._aligned_square = self._aligned_near = 0.0

    def update(self, predicted: NDArray, label: NDArray) -> None:
        valid = labelled("metres", label)
        p, t = predicted[valid].astype(np.float64), label[valid].astype(np.float64)
        self._square += float(((p - t) ** 2).sum())
        self._relative += float((np.abs(p - t) / t).sum())
        self._near += float((np.maximum(p / t, t / p) < 1.25).sum())
        self._n += len(t)
        if len(t):
            p *= np.median(t) / np.median(p)
            self._aligned_square += float(((p - t) ** 2).sum())
            self._aligned_near += float((np.maximum(p / t, t / p) < 1.25).sum())

    def compute(self) -> Figures:
        square, aligned = _mean(self._square, self._n), _mean(self._aligned_square, self._n)
        return {
            "RMSE_m": None if square is None else square**0.5,
            "relative_error": _mean(self._relative, self._n),
            "delta_1.25_percent": _mean(100 * self._near, self._n),
            "aligned_RMSE_m": None if aligned is None else aligned**0.5,
            "aligned_delta_1.25_percent": _mean(100 * self._aligned_near, self._n),
        }


class Angle:
    """Mean and median angle in degrees, and the share within 30 degrees. Maps and labels (H, W, 3)."""

    def __init__(self) -> None:
        # A histogram of 0.05 degrees: exact sums, a median good to that, and no split kept in memory.
        self._histogram = np.zeros(3601, np.int64)
        self._sum = 0.0

    def update(self, predicted: NDArray, label: NDArray) -> None:
        valid = labelled("unit_vectors", label)
        p, t = predicted[valid].astype(np.float64), label[valid].astype(np.float64)
        angle = np.degrees(np.arctan2(np.linalg.norm(np.cross(p, t), axis=-1), (p * t).sum(-1)))
        self._sum += float(angle.sum())
        self._histogram += np.bincount((angle * 20).astype(int), minlength=3601)

    def compute(self) -> Figures:
        total = self._histogram.sum()
        cumulative = self._histogram.cumsum()
        return {
            "mean_angle_degrees": _mean(self._sum, total),
            "median_angle_degrees": float(np.searchsorted(cumulative, total / 2)) / 20 if total else None,
            "within_30_percent": _mean(100 * cumulative[600], total),
        }


class Saliency:
    """IoU at 0.5, averaged over photos, and the maximum F-measure; per cent."""

    def __init__(self) -> None:
        self._iou: list[float] = []
        self._precision = np.zeros(255)
        self._recall = np.zeros(255)

    def update(self, predicted: NDArray, label: NDArray) -> None:
        valid = labelled("probability", label)
        if not valid.any():
            return
        p, t = predicted[valid], label[valid] == 1
        above = p > 0.5
        self._iou.append(float(_share((above & t).sum(), (above | t).sum())))
        chosen, right = _above(p, 255), _above(p[t], 255)
        self._precision += _share(right, chosen)
        self._recall += _share(right, t.sum())

    def compute(self) -> Figures:
        photos = len(self._iou)
        precision, recall = self._precision / max(1, photos), self._recall / max(1, photos)
        f = 1.3 * precision * recall / np.maximum(0.3 * precision + recall, 1e-12)
        return {
            "IoU_percent": _mean(100 * sum(self._iou), photos),
            "max_F_percent": 100 * float(f.max()) if photos else None,
        }


class Boundary:
    """F of boundaries at 0.5 and at the best of the thresholds 0.01...0.99 for the whole split (ODS); per cent.

    Maps are thinned by `peaks`; a pixel of either side is right if the other has one within `tolerance` of the
    diagonal (Martin, Fowlkes and Malik, PAMI 2004). There each pixel answers for one alone, here it may answer for
    several: figures are a little higher than those of the SEISM toolbox, and not to be put beside them.
    """

    def __init__(self, tolerance: float) -> None:
        self._tolerance = tolerance
        self._found, self._right, self._met = np.zeros((3, 99), np.int64)
        self._true = 0

    def update(self, predicted: NDArray, label: NDArray) -> None:
        valid, true = labelled("boundary", label), label == 1
        thin = np.where(valid, peaks(predicted.astype(np.float32)), np.float32(0))
        near = disc(self._tolerance * math.hypot(*label.shape))
        close = _within(true, near)
        self._found += _above(thin, 100)[1:]
        self._right += _above(thin[close], 100)[1:]
        self._met += _above(cv2.dilate(thin, near)[true], 100)[1:]
        self._true += int(true.sum())

    def compute(self) -> Figures:
        precision, recall = _share(self._right, self._found), self._met / max(1, self._true)
        f = 200 * precision * recall / np.maximum(precision + recall, 1e-12)
        known = self._true > 0
        return {"ODS_F_percent": float(f.max()) if known else None, "F_percent": float(f[49]) if known else None}


def _within(lines: NDArray[np.bool_], near: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """The pixels that have one of `lines` in their neighbourhood."""
    return cv2.dilate(lines.astype(np.uint8), near) > 0


def _above(values: NDArray, steps: int) -> NDArray[np.int64]:
    """How many of `values`, 0...1, are above k / steps, for k from 0 to steps - 1."""
    level = np.ceil(values.ravel() * steps).astype(int).clip(0, steps)  # above exactly the k < level
    return np.bincount(level, minlength=steps + 1)[::-1].cumsum()[::-1][1:]


def _mean(total: Any, count: Any) -> float | None:
    return float(total / count) if count else None


def _share(part: Any, whole: Any) -> Any:
    """`part / whole`, 1 where the whole is nothing: nothing was there, and nothing was missed."""
    return np.where(whole > 0, part / np.maximum(whole, 1), 1.0)
