"""A teacher's map on another grid."""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

__all__ = ["on_grid"]


def on_grid(values: NDArray[np.float32], size: tuple[int, int], *, smooth: bool = False) -> NDArray[np.float32]:
    """`values` (h, w) or (h, w, C) at `size` (H, W), bilinear between pixel centres; `smooth`: without aliasing.

    OpenCV, which the server scales its maps with, does not take as many channels as there are classes.
    """
    planes = torch.from_numpy(values).reshape(*values.shape[:2], -1).permute(2, 0, 1)[None]
    scaled = F.interpolate(planes, size, mode="bilinear", antialias=smooth)[0].permute(1, 2, 0)
    return scaled.reshape(*size, *values.shape[2:]).numpy()
