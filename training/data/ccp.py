"""Clothing Co-Parsing (Yang, Luo, Lin, CVPR 2014): saliency of the one person in each street photo.

Layout: `{train,val}/NNNN.{jpg,png}`; a label other than 0 is the person. One clear object a photo: an easy set. The
label maps of single photos may be missing.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ptsa_serve.tasks import TASKS, Task
from training.data.files import read_classes
from training.data.labels import IGNORE
from training.data.photoset import PhotoSet, files_by_name
from training.errors import DataError

__all__ = ["CCP"]

_LABELS = 59  # labels.txt of the data set: 0 = background, 1 to 58 = hair, skin, clothes


class CCP(PhotoSet):
    """`CCP(root, split)[i]`: a photo about 320 wide and 480 high with its saliency.

    Raises FileNotFoundError without photos or labels, DataError for label files that belong to no photo.
    """

    name = "ccp"
    records: Mapping[str, Task] = {"saliency": TASKS["saliency"]}
    size = (512, 384)

    def __init__(self, root: Path, split: str) -> None:
        folder = Path(root) / split
        photos = files_by_name(folder, (".jpg", ".jpeg")) if folder.is_dir() else {}
        if not photos:
            raise FileNotFoundError(f"{folder}: no photos; expected {split}/NNNN.jpg and NNNN.png")
        labels = files_by_name(folder, (".png",))
        if not labels:
            raise FileNotFoundError(f"{folder}: photos without any labels; expected {split}/NNNN.jpg and NNNN.png")
        for name, path in labels.items():
            if name not in photos:
                raise DataError(f"{path}: there is no photo {name}.jpg beside it; copy it too, or remove its label")
        super().__init__(photos, {"saliency": labels})

    def read(self, task: str, path: Path, size: tuple[int, int]) -> NDArray[np.uint8]:
        """See `PhotoSet.read`: 1 = the person. Raises DataError for a mask of 0 and 255, too."""
        label = read_classes(path, size, _LABELS)
        if label.max() == IGNORE and set(np.unique(label)) == {0, IGNORE}:
            raise DataError(
                f"{path}: found 0 and {IGNORE} alone, as in a mask; allowed are 0 (background), 1 to {_LABELS - 1} "
                f"(the person) and {IGNORE} (no label); write 1 for {IGNORE}"
            )
        return np.where(label == IGNORE, IGNORE, label != 0).astype(np.uint8)
