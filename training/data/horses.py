"""Weizmann horses (Borenstein and Ullman, ECCV 2002): saliency of the one horse in each photo.

Layout: `{rgb,figure_ground}/NAME.jpg`, 328 photos of any size; masks are grey JPEGs, smaller than the photos. There is
no split; ours goes by the last number in a name: `val` where 5 divides it, `train` the others.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ptsa_serve.tasks import TASKS, Task
from training.data.arrays import fitted
from training.data.files import read_photo
from training.data.photoset import PhotoSet, files_by_name
from training.errors import DataError

__all__ = ["Horses"]

_APART = 5


class Horses(PhotoSet):
    """`Horses(root, split)[i]`: a photo with its saliency.

    Raises FileNotFoundError without photos or masks, DataError for a name without a number or a mask without a photo.
    """

    name = "horses"
    records: Mapping[str, Task] = {"saliency": TASKS["saliency"]}
    size = (384, 512)
    any_shape = True

    def __init__(self, root: Path, split: str) -> None:
        photos, masks = (_of_split(Path(root) / folder, split) for folder in ("rgb", "figure_ground"))
        for name, path in masks.items():
            if name not in photos:
                raise DataError(f"{path}: there is no photo {name} in rgb/; copy it too, or remove its mask")
        super().__init__(photos, {"saliency": masks})

    def read(self, task: str, path: Path, size: tuple[int, int]) -> NDArray[np.uint8]:
        """See `PhotoSet.read`: 1 = the horse. Raises DataError for a mask of another shape than the photo's."""
        mask = (read_photo(path)[..., 0] > 127).astype(np.uint8)
        return fitted(path, mask, size, "probability")


def _of_split(folder: Path, split: str) -> dict[str, Path]:
    found = {}
    for name, path in files_by_name(folder, (".jpg", ".jpeg", ".png")).items():
        numbers = re.findall(r"\d+", name)
        if not numbers:
            raise DataError(f"{path}: its name has no number, which says whether it is of train or val; rename it")
        if (int(numbers[-1]) % _APART == 0) == (split == "val"):
            found[name] = path
    if not found:
        raise FileNotFoundError(
            f"{folder}: no photos of {split}; expected rgb/horseNNN.jpg, figure_ground/horseNNN.jpg"
        )
    return found
