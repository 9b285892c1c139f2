"""The part of the room teacher that is trained on labels: from what frozen networks see to three tasks.

A projection makes the networks' channels fewer and alike; several heads, trained apart, see what is left, and the
photo; their maps, of the photo and of its mirror image, are averaged.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ptsa_serve.tasks import TASKS
from training.errors import CheckpointError
from training.labelling.room_features import CHANNELS, FINE

__all__ = ["FILE", "KEPT", "KEPT_FINE", "Projection", "RoomHead", "RoomHeads", "load_heads", "mirrored"]

FILE = "head.safetensors"

# Channels that are kept of each network's map, and of those at the finer grid.
KEPT = (96, 128, 32, 96, 192, 192, 192)
KEPT_FINE = (48, 24)
METRES = (0.7, 10.0)  # of the rooms it has learnt from; what is said lies between
_BINS = 48  # of the logarithm of depth, which is their mean: it may be undecided between a thing and what is behind
_CLASSES = TASKS["segmentation"].channels
_DILATIONS = (1, 2, 1, 3, 1, 2)


class Projection(nn.Module):
    """Principal components of each network's channels, of about the same deviation: `training.teaching` fits it."""

    def __init__(self) -> None:
        super().__init__()
        for number, (channels, kept) in enumerate(zip(CHANNELS, KEPT, strict=True)):
            self.register_buffer(f"matrix{number}", torch.zeros(kept, channels))
            self.register_buffer(f"mean{number}", torch.zeros(channels))

    def forward(self, maps: Sequence[Tensor], fine: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Maps (C, h, w) and fine ones (C, 2h, 2w), see `Features`, to (928, h, w) and (72, 2h, 2w)."""
        coarse = [
            self._kept(values, number, kept) for number, (values, kept) in enumerate(zip(maps, KEPT, strict=True))
        ]
        finer = [self._kept(v, number, kept) for v, number, kept in zip(fine, FINE, KEPT_FINE, strict=True)]
        return torch.cat(coarse), torch.cat(finer)

    def _kept(self, values: Tensor, number: int, kept: int) -> Tensor:
        matrix, mean = self.get_buffer(f"matrix{number}"), self.get_buffer(f"mean{number}")
        return torch.einsum("kc,chw->khw", matrix[:kept], values - mean[:, None, None])


class _Block(nn.Module):
    """A block of ConvNeXt (Liu et al., arXiv 2201.03545) with a smaller kernel, left out now and then in training."""

    def __init__(self, width: int, dilation: int, drop: float = 0.1) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 5, padding=2 * dilation, dilation=dilation, groups=width)
        self.norm = nn.GroupNorm(1, width)
        self.widen = nn.Conv2d(width, 3 * width, 1)
        self.narrow = nn.Conv2d(3 * width, width, 1)
        self.gain = nn.Parameter(torch.full((width, 1, 1), 0.3))
        self._drop = drop

    def forward(self, x: Tensor) -> Tensor:
        y = self.narrow(F.gelu(self.widen(self.norm(self.depthwise(x)))))
        if self.training:
            y = y * (torch.rand(len(x), 1, 1, 1, device=x.device) >= self._drop) / (1 - self._drop)
        return x + self.gain * y


class RoomHead(nn.Module):
    """One head. width: of its layers; fine_width: of those at twice the resolution; blocks: at the coarser one."""

    def __init__(self, width: int = 224, blocks: int = 4, fine_width: int = 96) -> None:
        super().__init__()
        self.drop = nn.Dropout2d(0.2)
        self.enter = nn.Conv2d(sum(KEPT) + 2, width, 1)
        dilations = [_DILATIONS[number % len(_DILATIONS)] for number in range(blocks)]
        self.blocks = nn.Sequential(*(_Block(width, dilation) for dilation in dilations))
        self.whole = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
        self.norm = nn.GroupNorm(1, width)
        self.up = nn.Conv2d(width, fine_width, 1)
        self.enter_fine = nn.Conv2d(sum(KEPT_FINE) + 3, fine_width, 1)
        self.fine = nn.Sequential(_Block(fine_width, 1), _Block(fine_width, 1))
        self.segmentation = nn.Sequential(nn.Dropout2d(0.1), nn.Conv2d(fine_width, _CLASSES, 1))
        self.depth = nn.Conv2d(fine_width, _BINS, 1)
        self.normals = nn.Conv2d(fine_width, 3, 1)
        logs = torch.tensor(METRES).log()
        self.register_buffer("centres", torch.linspace(logs[0].item(), logs[1].item(), _BINS).view(-1, 1, 1))

    def forward(self, coarse: Tensor, fine: Tensor, photo: Tensor) -> dict[str, Tensor]:
        """(N, 928, h, w), (N, 72, 2h, 2w) and RGB (N, 3, 2h, 2w) in -1...1 to raw planes (N, C, 2h, 2w) of each task:
        logits of classes, the logarithm of metres, normals of length 1.
        """
        n, _, h, w = coarse.shape
        x = self.enter(torch.cat([self.drop(coarse), _place(n, h, w, coarse)], 1))
        x = self.blocks(x)
        x = x + self.whole(x.mean((2, 3)))[:, :, None, None]
        x = F.interpolate(self.up(self.norm(x)), scale_factor=2, mode="bilinear")
        x = self.fine(x + self.enter_fine(torch.cat([fine, photo], 1)))
        bins = self.depth(x).float().softmax(1)
        return {
            "segmentation": self.segmentation(x).float(),
            "depth": (bins * self.get_buffer("centres")).sum(1, keepdim=True),
            "normals": F.normalize(self.normals(x).float(), dim=1),
        }


class RoomHeads(nn.Module):
    """The projection and its heads."""

    def __init__(self, projection: Projection, heads: Sequence[RoomHead]) -> None:
        super().__init__()
        self.projection = projection
        self.heads = nn.ModuleList(heads)

    def forward(self, coarse: Tensor, fine: Tensor, photo: Tensor) -> dict[str, Tensor]:
        """What all heads make, on average, of a photo and its mirror image; arguments as of `RoomHead`, in eval mode.

        By task: probabilities (N, 39, 2h, 2w), metres (N, 1, 2h, 2w), normals (N, 3, 2h, 2w) of length 1.
        """
        found = []
        for mirror in (False, True):
            seen = [values.flip(-1) if mirror else values for values in (coarse, fine, photo)]
            for head in self.heads:
                raw = head(*seen)
                raw["segmentation"] = raw["segmentation"].softmax(1)
                found.append(mirrored(raw) if mirror else raw)
        mean = {task: torch.stack([raw[task] for raw in found]).mean(0) for task in found[0]}
        return mean | {"depth": mean["depth"].exp(), "normals": F.normalize(mean["normals"], dim=1)}


def mirrored(raw: dict[str, Tensor]) -> dict[str, Tensor]:
    """Maps (N, C, h, w) of the mirror image; twice is the identity."""
    flipped = {task: values.flip(-1) for task, values in raw.items()}
    return flipped | {"normals": flipped["normals"] * flipped["normals"].new_tensor((-1, 1, 1)).view(3, 1, 1)}


def load_heads(path: Path) -> RoomHeads:
    """The heads of a file, in eval mode, as many and as wide as it says. Raises CheckpointError if it is damaged."""
    try:
        weights = {name: tensor.float() for name, tensor in load_file(path).items()}
        numbers = {name.split(".")[1] for name in weights if name.startswith("heads.")}
        heads = RoomHeads(Projection(), [_shaped(weights, f"heads.{number}.") for number in range(len(numbers))])
        heads.load_state_dict(weights)
    except (SafetensorError, LookupError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{path}: no heads of a room teacher ({reason}); copy it again, or make it with `python -m training teach`"
        ) from None
    return heads.eval()


def _shaped(weights: dict[str, Tensor], prefix: str) -> RoomHead:
    fine_width, width = weights[f"{prefix}up.weight"].shape[:2]
    blocks = {name.split(".")[3] for name in weights if name.startswith(f"{prefix}blocks.")}
    return RoomHead(width, len(blocks), fine_width)


def _place(n: int, h: int, w: int, like: Tensor) -> Tensor:
    """Where each cell lies, x and y in -1...1: (N, 2, h, w)."""
    y, x = torch.meshgrid(*(torch.linspace(-1, 1, side, device=like.device) for side in (h, w)), indexing="ij")
    return torch.stack([x, y]).to(like.dtype).expand(n, -1, -1, -1)
