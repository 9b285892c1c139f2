"""One task's decoder: from four maps of the backbone to raw output planes at stride 4.

Each stage is normalised and projected to one width *before* anything is up-sampled (a 1x1 projection and bilinear
up-sampling commute, and the projection is then 4 to 64 times cheaper); the maps are added from coarse to fine, with
a 3x3 convolution at strides 16, 8 and 4 where neighbours must agree.

Why not MTLoRA's head (concatenate at stride 4, 1x1 to 1080 channels): on Swin nano it costs more than the backbone.
This one follows feature pyramids (Lin et al., arXiv 1612.03144; Panoptic FPN's sum, arXiv 1901.02446).
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Decoder"]


class Decoder(nn.Module):
    """Maps (N, h, w, C_s) at strides 4, 8, 16, 32 -> (N, channels, H/4, W/4), not yet in the task's unit."""

    def __init__(self, widths: Sequence[int], channels: int, *, width: int = 96, fine_width: int = 48) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(c) for c in widths)
        self.lateral = nn.ModuleList(
            nn.Linear(c, fine_width if stage == 0 else width) for stage, c in enumerate(widths)
        )
        self.smooth16 = _smooth(width, width)
        self.smooth8 = _smooth(width, width)
        self.narrow = nn.Conv2d(width, fine_width, 1, bias=False)
        self.smooth4 = _smooth(fine_width, fine_width)
        self.head = nn.Conv2d(fine_width, channels, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        s4, s8, s16, s32 = (
            project(norm(x)).permute(0, 3, 1, 2)
            for x, norm, project in zip(maps, self.norms, self.lateral, strict=True)
        )
        x = self.smooth16(s16 + _up(s32, s16))
        x = self.smooth8(s8 + _up(x, s8))
        x = self.smooth4(s4 + _up(self.narrow(x), s4))
        return self.head(x)


def _smooth(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


def _up(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=False)
