"""The room teacher: segmentation, depth and normals of photos of rooms."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from training.errors import CheckpointError
from training.labelling import room_features, room_head
from training.labelling.ade20k import familiar
from training.labelling.base import Guess, Guesses
from training.labelling.room_features import CHANNELS, RoomFeatures
from training.labelling.room_head import load_head, maps_of

__all__ = ["FILES", "RoomTeacher"]

FILES = (*room_features.FILES, room_head.FILE)


class RoomTeacher:
    """Frozen networks with a head. Raises CheckpointError for damaged files, or a head of other features."""

    def __init__(self, deeplab: Path, mosaic: Path, dino: Path, head: Path) -> None:
        self._head = load_head(head)
        if (found := self._head.mu.shape[1]) != CHANNELS:
            raise CheckpointError(f"{head}: a head of {found} features, the frozen networks give {CHANNELS}")
        self._features = RoomFeatures(deeplab, mosaic, dino)

    @torch.no_grad()
    def __call__(self, photo: NDArray[np.uint8]) -> Guesses:
        """See `LabelTeacher`; metres are those of a camera that sees 63 degrees across, as NYU's does."""
        features, share = self._features(photo)
        maps = {task: values[0].permute(1, 2, 0).numpy() for task, values in maps_of(self._head(features)).items()}
        classes = maps["segmentation"]
        segmentation = Guess(classes, classes.max(-1))
        guesses = {
            "segmentation": segmentation,
            "depth": Guess(maps["depth"][..., 0]),
            "normals": Guess(maps["normals"]),
        }
        return Guesses(guesses, familiar(share, segmentation))
