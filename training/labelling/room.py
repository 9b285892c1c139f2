"""The room teacher: segmentation, depth and normals of photos of rooms."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.labelling import room_features, room_head
from training.labelling.ade20k import familiar
from training.labelling.base import Guess, Guesses
from training.labelling.room_features import RoomFeatures, small_photo
from training.labelling.room_head import load_heads

__all__ = ["FILES", "RoomTeacher", "as_guesses"]

FILES = (*room_features.FILES, room_head.FILE)


class RoomTeacher:
    """Frozen networks with trained heads. Raises CheckpointError for damaged files."""

    def __init__(self, deeplab: Path, mosaic: Path, dino: Path, head: Path) -> None:
        self._heads = load_heads(head)
        self._features = RoomFeatures(deeplab, mosaic, dino)

    @torch.no_grad()
    def __call__(self, photo: NDArray[np.uint8]) -> Guesses:
        """See `LabelTeacher`; metres are those of a camera that sees 63 degrees across, as NYU's does."""
        features = self._features(photo)
        coarse, fine = self._heads.projection(features.maps, features.fine)
        guesses = as_guesses(self._heads(coarse[None], fine[None], small_photo(photo)[None]))
        return Guesses(guesses, familiar(features.room, guesses["segmentation"]))


def as_guesses(found: Mapping[str, Tensor]) -> dict[str, Guess]:
    """What `RoomHeads` makes of one photo."""
    maps = {task: values[0].permute(1, 2, 0).numpy() for task, values in found.items()}
    classes = maps["segmentation"]
    return {
        "segmentation": Guess(classes, classes.max(-1)),
        "depth": Guess(maps["depth"][..., 0]),
        "normals": Guess(maps["normals"]),
    }
