"""NYU Depth v2, labelled set (Silberman et al., ECCV 2012): segmentation, depth and normals of indoor photos.

Layout: `{train,val}/{image,depth,normals,segmentation}/NNNN.{jpg,png,jpg,png}`, see the README of the data.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from training.data.labels import LabelledPhoto, check_size, read_image

__all__ = ["NYU"]

# A stored normal shorter than this is "no label": 8 bits cannot hold (0, 0, 0) exactly.
_SHORTEST = 0.5


class NYU(Dataset[LabelledPhoto]):
    """`NYU(root, split)[i]`: a photo of 320 x 240 with labels of three tasks. Raises FileNotFoundError without data."""

    tasks: Sequence[str] = ("segmentation", "depth", "normals")
    size = (384, 512)  # of the model's sizes, the one nearest to these photos' aspect ratio

    def __init__(self, root: Path, split: str) -> None:
        self._folder = Path(root) / split
        self._names = sorted(p.stem for p in (self._folder / "image").glob("*.jpg"))
        if not self._names:
            raise FileNotFoundError(
                f"{self._folder / 'image'}: no photos; expected {split}/{{image,depth,normals,segmentation}}/NNNN"
            )

    def __len__(self) -> int:
        return len(self._names)

    def photo_path(self, index: int) -> Path:
        """The photo's file."""
        return self._folder / "image" / f"{self._names[index]}.jpg"

    def __getitem__(self, index: int) -> LabelledPhoto:
        name = self._names[index]
        image = read_image(self.photo_path(index), "RGB")
        paths = {
            "segmentation": self._folder / "segmentation" / f"{name}.png",
            "depth": self._folder / "depth" / f"{name}.png",
            "normals": self._folder / "normals" / f"{name}.jpg",
        }
        stored = {task: read_image(path) for task, path in paths.items()}
        for task, path in paths.items():
            check_size(path, stored[task], image)
        normals = stored["normals"].astype(np.float32) / 127.5 - 1
        length = np.linalg.norm(normals, axis=-1, keepdims=True)
        labels = {
            "segmentation": stored["segmentation"],
            "depth": stored["depth"].astype(np.float32) / 1000,
            "normals": np.where(length > _SHORTEST, normals / np.maximum(length, _SHORTEST), 0).astype(np.float32),
        }
        return LabelledPhoto(name, image, labels)
