"""A photo with labels for some tasks, and the three data sets' common ways of marking "no label here"."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["IGNORE", "LabelledPhoto", "check_size", "read_image"]

# Class index and saliency value of pixels without a label. Depth marks them with 0, normals with (0, 0, 0).
IGNORE = 255


@dataclass(frozen=True)
class LabelledPhoto:
    """One photo, RGB uint8 (H, W, 3), and the labels it has, by task name, each of the photo's height and width.

    segmentation: uint8 (H, W), class or IGNORE. depth: float32 (H, W), metres, 0 = none. normals: float32 (H, W, 3),
    unit length or (0, 0, 0). saliency: uint8 (H, W), 0, 1 or IGNORE.
    """

    name: str
    image: NDArray[np.uint8]
    labels: dict[str, NDArray]


def read_image(path, mode: str | None = None) -> NDArray:
    """Pixels of an image file. Raises FileNotFoundError or OSError with the path in the message."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: this label or photo is missing; is the data set complete?")
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert(mode) if mode else image)
    except OSError as error:
        raise OSError(f"{path}: cannot be read ({error}); copy it from the data set again") from error


def check_size(path, label: NDArray, image: NDArray) -> None:
    """Raise ValueError, naming the file, if a label is not of its photo's size."""
    if label.shape[:2] != image.shape[:2]:
        raise ValueError(
            f"{path}: the label is {label.shape[1]} x {label.shape[0]} pixels, its photo "
            f"{image.shape[1]} x {image.shape[0]}; resize it with nearest neighbour or copy it from the data set again"
        )
