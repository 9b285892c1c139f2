"""What frozen networks see in a photo of a room: the part of the room teacher that no head changes, worth caching."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from training.labelling import ade20k, dinov2
from training.labelling.ade20k import ADE20K, room_share
from training.labelling.dinov2 import PATCH, DINOv2
from training.labelling.grids import on_grid

__all__ = ["CHANNELS", "FILES", "GRID", "RoomFeatures"]

FILES = (*ade20k.FILES, dinov2.FILE)

# Rows and columns that a photo is described on; a photo that is higher than wide has them the other way round.
GRID = (30, 40)
# The last map and those of two blocks in between, which know more of geometry.
_BLOCKS = (5, 8)
_PATCHES = (22, 29)  # of DINOv2: 308 x 406 pixels
CHANNELS = 151 + 256 + 32 + 128 + 384 * (1 + len(_BLOCKS))


class RoomFeatures:
    """The networks. Raises CheckpointError for damaged files."""

    def __init__(self, deeplab: Path, mosaic: Path, dino: Path) -> None:
        self._ade, self._dino = ADE20K(deeplab, mosaic), DINOv2(dino)

    def __call__(self, photo: NDArray[np.uint8]) -> tuple[Tensor, float]:
        """Features (1, 1719, 30, 40) of an upright RGB photo (H, W, 3), and how much of it is a room, 0...1.

        The photo is squeezed to 4 : 3, one that is higher than wide to 3 : 4, with (1, 1719, 40, 30). Channels:
        DeepLab's logits and features, MOSAIC's, DINOv2's last map and those of its blocks 5 and 8.
        """
        upright = photo.shape[0] > photo.shape[1]
        (rows, columns), grid = (_turned(_PATCHES), _turned(GRID)) if upright else (_PATCHES, GRID)
        seen = self._ade(photo)
        maps = [
            torch.from_numpy(on_grid(values, grid, smooth=True)).permute(2, 0, 1)[None]
            for values in (seen.logits, seen.features, seen.few_logits, seen.few_features)
        ]
        squeezed = Image.fromarray(photo).resize((columns * PATCH, rows * PATCH), Image.Resampling.BICUBIC)
        image = torch.from_numpy(np.array(squeezed)).permute(2, 0, 1)[None].float()
        tokens = torch.cat(self._dino(image, _BLOCKS), 1)
        return torch.cat([*maps, F.interpolate(tokens, grid, mode="bilinear")], 1), room_share(seen.logits)


def _turned(size: tuple[int, int]) -> tuple[int, int]:
    return size[1], size[0]
