"""From a teacher's map to a label, as the data sets know them, and to the bytes of its file."""

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ptsa_serve.tasks import Kind
from training.data.labels import LABELS, labelled
from training.labelling.base import Guess
from training.labelling.grids import on_grid

__all__ = ["SUFFIXES", "Label", "encoded", "label_of", "label_size"]

SUFFIXES: dict[Kind, str] = {"classes": ".png", "metres": ".png", "unit_vectors": ".jpg", "probability": ".png"}

_SHORTEST = 32  # of a label's sides: rounded, shorter ones would not have the photo's shape
_STEP = 20  # millimetres between two depths, as in NYU's labels: teachers do not know better, and files are smaller


@dataclass(frozen=True, eq=False)
class Label:
    """values: as `LabelledPhoto` has them. ignored: share of the pixels without a label. confidence: mean, if any."""

    values: NDArray
    ignored: float
    confidence: float | None


def label_size(photo: tuple[int, int], longest: int) -> tuple[int, int]:
    """(h, w) of the labels of a photo (H, W): of its shape, the longer side at most `longest`."""
    scale = min(1.0, longest / max(photo))
    height, width = (round(side * scale) for side in photo)
    return (height, width) if min(height, width) >= _SHORTEST else photo


def label_of(kind: Kind, guess: Guess, size: tuple[int, int], confident: float) -> Label:
    """A teacher's map as a label of `size` (h, w): scaled before it is decided on, so edges are no stairs.

    Where the teacher has a confidence, pixels below `confident` have no label.
    """
    values = on_grid(guess.values, size)
    match kind:
        case "classes":
            label = values.argmax(-1)
        case "probability" | "boundary":
            label = values > 0.5
        case "metres":
            label = values
        case "unit_vectors":
            label = values / np.maximum(np.linalg.norm(values, axis=-1, keepdims=True), 1e-6)
    label = label.astype(LABELS[kind].dtype)
    mean = None
    if guess.confidence is not None:
        sure = on_grid(guess.confidence, size)
        mean = float(sure.mean())
        label[sure < confident] = LABELS[kind].nothing
    return Label(label, 1 - float(labelled(kind, label).mean()), mean)


def encoded(kind: Kind, label: NDArray) -> bytes:
    """A label's file: PNG of classes, of 0 and 1, of millimetres; JPEG of normals, a fifth of PNG."""
    file = io.BytesIO()
    match kind:
        case "metres":
            Image.fromarray((np.rint(label * (1000 / _STEP)) * _STEP).astype(np.uint16)).save(file, "PNG")
        case "unit_vectors":
            colours = np.rint((label + 1) * 127.5).astype(np.uint8)
            Image.fromarray(colours).save(file, "JPEG", quality=95, subsampling=0)
        case _:
            Image.fromarray(label).save(file, "PNG")
    return file.getvalue()
