"""The part of the room teacher that is trained on labels: from the features of frozen networks to three tasks."""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ptsa_serve.tasks import TASKS
from training.errors import CheckpointError

__all__ = ["FILE", "RoomHead", "load_head", "maps_of"]

FILE = "head.safetensors"

# What comes out, channel by channel: logits of classes, the logarithm of metres, a normal of any length.
_TASKS = ("segmentation", "depth", "normals")
_OUT = tuple(TASKS[task].channels for task in _TASKS)
_METRES = (0.5, 10.0)  # of the rooms it has learnt from


class RoomHead(nn.Module):
    """Features (N, channels, h, w) -> raw maps (N, 43, 2h, 2w).

    width: of its layers. inner: of the last one, at twice the resolution. `mu` and `sd` make the features standard.
    Names are those of its file: `a` narrows, `b` and `c` (dilated) look around, `g` knows the whole, `d` is finer.
    """

    mu: Tensor
    sd: Tensor

    def __init__(self, channels: int, width: int = 224, inner: int = 80) -> None:
        super().__init__()
        self.register_buffer("mu", torch.zeros(1, channels, 1, 1))
        self.register_buffer("sd", torch.ones(1, channels, 1, 1))
        self.a = nn.Sequential(nn.Dropout2d(0.15), nn.Conv2d(channels, width, 1), nn.GELU())
        self.b = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.GELU())
        self.c = nn.Sequential(nn.Conv2d(width, width, 3, padding=2, dilation=2), nn.GELU())
        self.g = nn.Linear(width, width)
        finer = nn.Conv2d(width, inner, 3, padding=1)
        self.d = nn.Sequential(finer, nn.GELU(), nn.Dropout2d(0.1), nn.Conv2d(inner, sum(_OUT), 1))

    def forward(self, features: Tensor) -> Tensor:
        x = self.a((features - self.mu) / self.sd)
        x = x + self.b(x)
        x = x + self.c(x)
        x = x + self.g(x.mean((2, 3)))[:, :, None, None]
        return self.d(F.interpolate(x, scale_factor=2, mode="bilinear"))


def maps_of(raw: Tensor) -> dict[str, Tensor]:
    """By task, of raw maps (N, 43, h, w): probabilities (N, 39, h, w), metres (N, 1, h, w), unit (N, 3, h, w)."""
    classes, metres, vectors = raw.split(_OUT, 1)
    return {
        "segmentation": classes.softmax(1),
        "depth": metres.exp().clamp(*_METRES),
        "normals": F.normalize(vectors, dim=1),
    }


def load_head(path: Path) -> RoomHead:
    """The head of a file, in eval mode, as wide as its tensors are. Raises CheckpointError if it is damaged."""
    try:
        weights = {name: tensor.float() for name, tensor in load_file(path).items()}
        width, channels = weights["a.1.weight"].shape[:2]
        head = RoomHead(channels, width, inner=len(weights["d.0.weight"]))
        head.load_state_dict(weights)
    except (SafetensorError, LookupError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path}: no head of a room teacher ({reason}); copy it again") from None
    return head.eval()
