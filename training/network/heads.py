"""From raw planes at stride 4 to maps in the task's unit, at any size: the same code in evaluation and in export."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ptsa_serve.tasks import Task

__all__ = ["finish", "upsample"]

# Depth is predicted as its logarithm; the bounds keep every output finite: 0.1 m to 81 m.
LOG_DEPTH = (-2.3, 4.4)


def upsample(raw: Tensor, size: tuple[int, int]) -> Tensor:
    """Raw planes (N, C, h, w) at `size` (H, W), bilinear."""
    return F.interpolate(raw, size=size, mode="bilinear", align_corners=False)


def finish(task: Task, raw: Tensor, size: tuple[int, int]) -> Tensor:
    """The map that the artifact returns, for raw planes (N, C, h, w).

    classes: uint8 (N, H, W), class index. metres: float (N, H, W). unit_vectors: float (N, H, W, 3), unit length.
    probability, boundary: float (N, H, W), 0...1.
    """
    planes = upsample(raw, size)
    match task.kind:
        case "classes":
            return planes.argmax(1).to(torch.uint8)
        case "metres":
            return planes[:, 0].clamp(*LOG_DEPTH).exp()
        case "unit_vectors":
            return F.normalize(planes, dim=1, eps=1e-6).permute(0, 2, 3, 1)
        case "probability" | "boundary":
            return planes[:, 0].sigmoid()
