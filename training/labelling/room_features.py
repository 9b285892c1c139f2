"""What frozen networks see in a photo of a room: the part of the room teacher that no head changes, worth caching."""

from dataclasses import dataclass
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

__all__ = ["CHANNELS", "FILES", "FINE", "GRID", "Features", "RoomFeatures", "small_photo"]

FILES = (*ade20k.FILES, dinov2.FILE)

# Rows and columns that a photo is described on; a photo that is higher than wide has them the other way round.
GRID = (30, 40)
# The last map and those of two blocks in between, which know more of geometry.
_BLOCKS = (5, 8)
_PATCHES = (22, 29)  # of DINOv2: 308 x 406 pixels
# Of each map: DeepLab's logits and features, MOSAIC's, DINOv2's last map and those of its blocks.
CHANNELS = (151, 256, 32, 128, *(384,) * (1 + len(_BLOCKS)))
# Which of them are known at twice that grid as well: the logits, whose networks see more finely.
FINE = (0, 2)


@dataclass(frozen=True, eq=False)
class Features:
    """One photo. maps: of each of `CHANNELS`, (C, 30, 40). fine: of each of `FINE`, (C, 60, 80).

    room: see `room_share`. An upright photo has rows and columns the other way round.
    """

    maps: list[Tensor]
    fine: list[Tensor]
    room: float


class RoomFeatures:
    """The networks. Raises CheckpointError for damaged files."""

    def __init__(self, deeplab: Path, mosaic: Path, dino: Path) -> None:
        self._ade, self._dino = ADE20K(deeplab, mosaic), DINOv2(dino)

    def __call__(self, photo: NDArray[np.uint8]) -> Features:
        """Of an upright RGB photo (H, W, 3), squeezed to 4 : 3, or to 3 : 4 if it is higher than wide."""
        grid, patches = _turned(GRID, photo), _turned(_PATCHES, photo)
        double = (2 * grid[0], 2 * grid[1])
        seen = self._ade(photo)
        found = [seen.logits, seen.features, seen.few_logits, seen.few_features]
        height, width = (count * PATCH for count in patches)
        squeezed = Image.fromarray(photo).resize((width, height), Image.Resampling.BICUBIC)
        image = torch.from_numpy(np.array(squeezed)).permute(2, 0, 1)[None].float()
        tokens = self._dino(image, _BLOCKS)
        return Features(
            [_scaled(values, grid) for values in found]
            + [F.interpolate(values, grid, mode="bilinear", antialias=True)[0] for values in tokens],
            [_scaled(found[number], double) for number in FINE],
            room_share(seen.logits),
        )


def small_photo(photo: NDArray[np.uint8]) -> Tensor:
    """A photo (H, W, 3) as the head sees it: RGB in -1...1, (3, 60, 80), or (3, 80, 60) of an upright one."""
    rows, columns = _turned(GRID, photo)
    # Halved twice: it is cached at the size of the labels, too.
    image = Image.fromarray(photo).resize((4 * columns, 4 * rows), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 127.5 - 1
    return F.interpolate(pixels, (2 * rows, 2 * columns), mode="area")[0]


def _scaled(values: NDArray[np.float32], grid: tuple[int, int]) -> Tensor:
    return torch.from_numpy(on_grid(values, grid, smooth=True)).permute(2, 0, 1)


def _turned(size: tuple[int, int], photo: NDArray[np.uint8]) -> tuple[int, int]:
    return (size[1], size[0]) if photo.shape[0] > photo.shape[1] else size
