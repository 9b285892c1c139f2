"""A photo with labels for some tasks, and what "no label here" is for each kind of task: losses and metrics ask here.

A photo without a label for a task holds a map of nothing but "no label": it counts neither in a loss nor in a figure.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptsa_serve.tasks import KINDS, Kind

__all__ = ["IGNORE", "NOTHING", "SHORTEST_NORMAL", "LabelledPhoto", "labelled", "no_label"]

# Class index and saliency value of pixels without a label.
IGNORE = 255

# What a pixel without a label holds, by kind.
NOTHING: dict[Kind, int] = {"classes": IGNORE, "probability": IGNORE, "metres": 0, "unit_vectors": 0}

# Labels of a probability are 0, 1 or IGNORE: bytes, where the maps of a model are float32.
_STORED = {kind: np.dtype(dtype) for kind, (dtype, _) in KINDS.items()} | {"probability": np.dtype(np.uint8)}

# A normal shorter than this is "no label": 8 bits cannot hold (0, 0, 0) exactly, labels have length 1.
SHORTEST_NORMAL = 0.5


@dataclass(frozen=True)
class LabelledPhoto:
    """One upright photo, RGB uint8 (H, W, 3), and the labels of its set's tasks, each of the photo's height and width.

    segmentation: uint8 (H, W), class or IGNORE. depth: float32 (H, W), metres, 0 = none. normals: float32 (H, W, 3),
    unit length or (0, 0, 0). saliency: uint8 (H, W), 0, 1 or IGNORE.
    """

    name: str
    image: NDArray[np.uint8]
    labels: dict[str, NDArray]


def labelled(kind: Kind, label: Any, *, axis: int = -1) -> Any:
    """Which pixels have a label: booleans without the channels, for a NumPy array or a torch tensor alike.

    `axis`: where the three channels of `unit_vectors` are.
    """
    match kind:
        case "classes" | "probability":
            return label != IGNORE
        case "metres":
            return label > 0
        case "unit_vectors":
            return (label**2).sum(axis) > SHORTEST_NORMAL**2


def no_label(kind: Kind, size: tuple[int, int]) -> NDArray:
    """The label map of a photo of `size` (H, W) that has none for a task of this kind."""
    return np.full((*size, *KINDS[kind][1]), NOTHING[kind], _STORED[kind])
