"""A part of the training photos kept from training, to choose among checkpoints by: never the set that is reported."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from training.data.labels import LabelledPhoto
from training.data.photoset import PhotoSet
from training.errors import ConfigError

__all__ = ["Part", "hold_out"]


class Part(PhotoSet):
    """Some photos of a set, as a set of its own."""

    def __init__(self, whole: PhotoSet, indices: Sequence[int]) -> None:
        self._whole, self._indices = whole, indices
        # Which every set has a default of.
        self.tolerance, self.notes, self.any_shape = whole.tolerance, whole.notes, whole.any_shape

    def __getattr__(self, name: str) -> Any:
        # Whatever else a set says of itself. Not while this is being copied to a worker, without `_whole` yet.
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._whole, name)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> LabelledPhoto:
        return self._whole[self._indices[index]]

    def photo_path(self, index: int) -> Path:
        return self._whole.photo_path(self._indices[index])

    def label_path(self, task: str, index: int) -> Path | None:
        return self._whole.label_path(task, self._indices[index])

    def label_paths(self, task: str) -> list[Path]:
        names = {self.photo_path(index).stem for index in range(len(self))}
        return [path for path in self._whole.label_paths(task) if path.stem in names]

    def read(self, task: str, path: Path, size: tuple[int, int]) -> NDArray:
        return self._whole.read(task, path, size)


def hold_out(data: PhotoSet, share: float, seed: int) -> tuple[PhotoSet, PhotoSet | None]:
    """The photos to train on, and those to validate on: `share` of all, at least one; None for a share of 0.

    Which ones depends on the seed and their names alone, not on what else is in the folder's order. Raises ConfigError
    if none would be left to train on.
    """
    if not share:
        return data, None
    count = max(1, round(share * len(data)))
    if count >= len(data):
        raise ConfigError(f"--hold_out {share} leaves none of the {len(data)} photos of {data.name} to train on")
    keys = [f"{seed}\n{data.name}\n{data.photo_path(index).name}" for index in range(len(data))]
    order = sorted(range(len(data)), key=lambda index: hashlib.sha256(keys[index].encode("utf-8", "replace")).digest())
    return Part(data, sorted(order[count:])), Part(data, sorted(order[:count]))
