"""A photo with labels, and what labels of each kind of task are: the one table that losses, metrics and geometry ask.

A photo without a label for a task holds a map of nothing but "no label": it counts neither in a loss nor in a figure.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ptsa_serve.resize import nearest
from ptsa_serve.tasks import KINDS, Kind

__all__ = [
    "IGNORE",
    "LABELS",
    "SHORTEST_NORMAL",
    "LabelKind",
    "LabelledPhoto",
    "labelled",
    "no_label",
    "pixels",
    "planes",
]

# Class index and saliency value of pixels without a label.
IGNORE = 255

# A normal shorter than this is "no label": 8 bits cannot hold (0, 0, 0) exactly, labels have length 1.
SHORTEST_NORMAL = 0.5


@dataclass(frozen=True)
class LabelledPhoto:
    """One upright photo, RGB uint8 (H, W, 3), and the labels of its set's tasks, each of the photo's height and width.

    kinds: of each task that has a label. classes: uint8 (H, W), class or IGNORE. metres: float32 (H, W), 0 = none.
    unit_vectors: float32 (H, W, 3), unit length or (0, 0, 0). probability, boundary: uint8 (H, W), 0, 1 or IGNORE.
    """

    name: str
    image: NDArray[np.uint8]
    labels: dict[str, NDArray]
    kinds: Mapping[str, Kind]


def _lines(label: NDArray, size: tuple[int, int]) -> NDArray:
    """`nearest`, but a pixel is 1 where any that it covers is: a line one pixel wide does not fall into dots."""
    cell = [max(1, math.ceil(have / want)) for have, want in zip(label.shape, size, strict=True)]
    thick = cv2.dilate((label == 1).astype(np.uint8), np.ones(cell, np.uint8))
    return nearest(np.where(thick == 1, np.uint8(1), label), size)


def _same(label: NDArray) -> NDArray:
    return label


def _seen_alike(label: NDArray, vectors: NDArray, nearness: Any) -> NDArray:
    return label


def _nearer(depth: NDArray, vectors: NDArray, nearness: Any) -> NDArray[np.float32]:
    return (depth * nearness).astype(np.float32)


def _mirrored(normals: NDArray) -> NDArray[np.float32]:
    return normals * np.array([-1, 1, 1], np.float32)


def _turned(normals: NDArray, vectors: NDArray, nearness: Any) -> NDArray[np.float32]:
    turned = normals @ vectors.T
    length = np.linalg.norm(turned, axis=-1, keepdims=True)
    return np.where(length > 0, turned / np.maximum(length, 1e-9), 0).astype(np.float32)


@dataclass(frozen=True)
class LabelKind:
    """What the labels of one kind of task are.

    dtype: of a label map; its axes are those of `KINDS`. nothing: what a pixel without a label holds. labelled(label,
    axis): which pixels have one. weight: of the loss in the sum. mirrored(label): the values, not their places, in a
    mirror. seen(label, vectors, nearness): the values to another camera, for whom normals are `vectors` (3, 3) @ n,
    made unit again, and depths `nearness`, a number or (H, W), times as large. resized(label, size): at (h, w), never
    averaged.
    """

    dtype: type[np.generic]
    nothing: int
    labelled: Callable[[Any, int], Any]
    weight: float = 1.0
    mirrored: Callable[[NDArray], NDArray] = _same
    seen: Callable[[NDArray, NDArray, Any], NDArray] = _seen_alike
    resized: Callable[[NDArray, tuple[int, int]], NDArray] = nearest


def _not_ignored(label: Any, axis: int) -> Any:
    return label != IGNORE


def _positive(label: Any, axis: int) -> Any:
    return label > 0


def _long(label: Any, axis: int) -> Any:
    return (label**2).sum(axis) > SHORTEST_NORMAL**2


# Weights so that each task's gradient is of one order: nats, metres, radians, nats, and nats of which the balance of
# boundaries leaves a tenth.
LABELS: dict[Kind, LabelKind] = {
    "classes": LabelKind(np.uint8, IGNORE, _not_ignored),
    "metres": LabelKind(np.float32, 0, _positive, seen=_nearer),
    "unit_vectors": LabelKind(np.float32, 0, _long, weight=3.0, mirrored=_mirrored, seen=_turned),
    "probability": LabelKind(np.uint8, IGNORE, _not_ignored),
    "boundary": LabelKind(np.uint8, IGNORE, _not_ignored, weight=10.0, resized=_lines),
}


def labelled(kind: Kind, label: Any, *, axis: int = -1) -> Any:
    """Which pixels have a label: booleans without the channels, for a NumPy array or a torch tensor alike.

    `axis`: where the three channels of `unit_vectors` are.
    """
    return LABELS[kind].labelled(label, axis)


def no_label(kind: Kind, size: tuple[int, int]) -> NDArray:
    """The label map of a photo of `size` (H, W) that has none for a task of this kind."""
    return np.full((*size, *KINDS[kind][1]), LABELS[kind].nothing, LABELS[kind].dtype)


def planes(label: NDArray) -> NDArray:
    """A label as training wants it: channels, where it has any, first, (C, H, W)."""
    return np.moveaxis(label, -1, 0) if label.ndim == 3 else label


def pixels(label: NDArray) -> NDArray:
    """Inverse of `planes`: (H, W) or (H, W, C)."""
    return np.moveaxis(label, 0, -1) if label.ndim == 3 else label
