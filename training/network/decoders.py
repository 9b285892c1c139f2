"""Decoders by name: from the maps of a backbone's stages to one task's raw output planes.

`pyramid` is ours. Each stage is normalised and projected to one width *before* anything is up-sampled (a 1x1 projection
and bilinear up-sampling commute, and the projection is then 4 to 64 times cheaper); the maps are added from coarse to
fine, with a 3x3 convolution at strides 16, 8 and 4 where neighbours must agree. The coarsest map also gets what windows
of 7 tokens cannot see, for 0.2 % of the multiply-adds: the mean of all tokens (global context, PSPNet, arXiv
1612.01105) and where each token lies (CoordConv, arXiv 1807.03247).
It follows feature pyramids (Lin et al., arXiv 1612.03144; Panoptic FPN's sum, arXiv 1901.02446).

`hrnet` is MTLoRA's (arXiv 2403.20320, after HRNet's, arXiv 1908.07919), for its published counts; on Swin nano it costs
more than the backbone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.backbones.base import Tap

__all__ = ["DECODERS", "HRNet", "Pyramid"]


class Pyramid(nn.Module):
    """Maps (N, h, w, C_s) at strides 4, 8, 16, 32 -> (N, channels, H/4, W/4), not yet in the task's unit."""

    def __init__(self, widths: Sequence[int], channels: int, width: int = 96, *, fine_width: int = 48) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(c) for c in widths)
        inputs = [*widths[:-1], 2 * widths[-1] + 4]  # see `_situated`
        self.lateral = nn.ModuleList(
            nn.Linear(c, fine_width if stage == 0 else width) for stage, c in enumerate(inputs)
        )
        self.smooth16 = _smooth(width, width)
        self.smooth8 = _smooth(width, width)
        self.narrow = nn.Conv2d(width, fine_width, 1, bias=False)
        self.smooth4 = _smooth(fine_width, fine_width)
        self.head = nn.Conv2d(fine_width, channels, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        normed = [norm(x) for x, norm in zip(maps, self.norms, strict=True)]
        normed[-1] = _situated(normed[-1])
        s4, s8, s16, s32 = (project(x).permute(0, 3, 1, 2) for x, project in zip(normed, self.lateral, strict=True))
        x = self.smooth16(s16 + _up(s32, s16))
        x = self.smooth8(s8 + _up(x, s8))
        x = self.smooth4(s4 + _up(self.narrow(x), s4))
        return self.head(x)

    def entries(self) -> list[Tensor]:
        """For each map (rows, C_s): what the first layer makes of its channels, with the gain of the norm before it."""
        found = []
        for layer, norm in zip(self.lateral, self.norms, strict=True):
            weight, gain = layer.get_parameter("weight"), norm.get_parameter("weight")
            # The last layer reads every channel twice, see `_situated`.
            times = 1 if weight.shape[1] == len(gain) else 2
            found.append(weight[:, : times * len(gain)].unflatten(1, (times, -1)).flatten(0, 1) * gain)
        return found


def _situated(x: Tensor) -> Tensor:
    """Tokens (N, h, w, C) -> (N, h, w, 2 C + 4): behind each the mean of all and its place, x, x², y, y² in -1...1."""
    n, h, w, _ = x.shape
    mean = x.mean((1, 2), keepdim=True)
    across, down = _place(w, x).view(1, 1, w, 2), _place(h, x).view(1, h, 1, 2)
    return torch.cat([x, *(part.expand(n, h, w, -1) for part in (mean, across, down))], -1)


def _place(size: int, like: Tensor) -> Tensor:
    """Centres of `size` cells of -1...1, and their squares: (size, 2)."""
    centres = (2 * torch.arange(size, device=like.device, dtype=like.dtype) + 1) / size - 1
    return torch.stack([centres, centres.square()], -1)


def _smooth(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


def _up(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=False)


class HRNet(nn.Module):
    """Maps (N, h, w, C_s) at strides 8, 16, 32, 32 -> (N, channels, H/8, W/8), not yet in the task's unit.

    Projections to 18, 36, 72 and 144 channels whatever the backbone's width, all brought to the finest map, then two
    1x1 convolutions. `width` has no meaning here.
    """

    PROJECTED = (18, 36, 72, 144)
    HIDDEN = 4 * sum(PROJECTED)

    def __init__(self, widths: Sequence[int], channels: int, width: int = 0) -> None:
        super().__init__()
        self.projections = nn.ModuleList(
            nn.Linear(c, to, bias=False) for c, to in zip(widths, self.PROJECTED, strict=True)
        )
        self.mix = nn.Sequential(nn.Conv2d(sum(self.PROJECTED), self.HIDDEN, 1), nn.BatchNorm2d(self.HIDDEN), nn.ReLU())
        self.head = nn.Conv2d(self.HIDDEN, channels, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        planes = [project(x).permute(0, 3, 1, 2) for x, project in zip(maps, self.projections, strict=True)]
        return self.head(self.mix(torch.cat([planes[0], *(_up(x, planes[0]) for x in planes[1:])], 1)))

    def entries(self) -> list[Tensor]:
        """As `Pyramid.entries`."""
        return [project.get_parameter("weight") for project in self.projections]


@dataclass(frozen=True)
class DecoderSpec:
    """build: from the maps' channels, the task's planes and a width. tap: where it reads the stages."""

    build: Callable[[Sequence[int], int, int], nn.Module]
    tap: Tap


DECODERS: dict[str, DecoderSpec] = {
    "pyramid": DecoderSpec(Pyramid, "stage"),
    "hrnet": DecoderSpec(HRNet, "merged"),
}
