"""DINOv2 (Oquab et al., arXiv 2304.07193): a vision transformer on patches of 14 pixels, from an 8-bit file."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from training.backbones import MEAN, STD
from training.errors import CheckpointError

__all__ = ["FILE", "PATCH", "DINOv2"]

FILE = "dinov2_vits14_int8.safetensors"
PATCH = 14
_HEAD = 64  # channels of each attention head, in every size that was published

# Parts of the names in the file, and of timm's.
_RENAMED = {".qkv.": ".attn.qkv.", ".proj.": ".attn.proj.", ".fc1.": ".mlp.fc1.", ".fc2.": ".mlp.fc2."}
_RENAMED |= {".ls1": ".ls1.gamma", ".ls2": ".ls2.gamma"}


class DINOv2(nn.Module):
    """The frozen network; depth and width are the file's. Raises CheckpointError for a damaged one."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        try:
            weights = _read(path)
            _, places, width = weights["pos"].shape
            depth = len({name.split(".")[1] for name in weights if name.startswith("blocks.")})
            norm: Any = partial(nn.LayerNorm, eps=1e-6)
            self.patch = nn.Conv2d(3, width, PATCH, PATCH)
            self.cls = nn.Parameter(torch.zeros(1, 1, width))
            self.pos = nn.Parameter(torch.zeros(1, places, width))
            self.blocks = nn.ModuleList(
                Block(width, width // _HEAD, qkv_bias=True, init_values=1.0, norm_layer=norm) for _ in range(depth)
            )
            self.norm = norm(width)
            self.load_state_dict(weights)
        except (SafetensorError, LookupError, ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise CheckpointError(f"{path}: no weights of DINOv2 ({reason}); copy the file again") from None
        self.eval()

    @torch.no_grad()
    def forward(self, images: Tensor, blocks: tuple[int, ...]) -> list[Tensor]:
        """Features (N, C, H / 14, W / 14): the normalised last ones, and what `blocks`, in rising order, give.

        images: (N, 3, H, W), RGB 0...255, H and W multiples of 14.
        """
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
        tokens = self.patch((images - mean) / std)
        grid = tokens.shape[2:]
        x = torch.cat([self.cls.expand(len(images), -1, -1), tokens.flatten(2).transpose(1, 2)], 1)
        x = x + self._positions(*grid)
        between = []
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number in blocks:
                between.append(x)
        return [values[:, 1:].transpose(1, 2).unflatten(2, grid) for values in (self.norm(x), *between)]

    def _positions(self, rows: int, columns: int) -> Tensor:
        """Of the class token and the patches, (1, 1 + rows * columns, C), from the square grid they were learnt on."""
        side = int((self.pos.shape[1] - 1) ** 0.5)
        square = self.pos[:, 1:].transpose(1, 2).unflatten(2, (side, side))
        if (rows, columns) != (side, side):
            square = F.interpolate(square, (rows, columns), mode="bicubic")
        return torch.cat([self.pos[:, :1], square.flatten(2).transpose(1, 2)], 1)


def _read(path: Path) -> dict[str, Tensor]:
    """float32 by timm's names: large matrices are stored in 8 bits with a scale a row."""
    stored = load_file(path)
    weights = {}
    for name, tensor in stored.items():
        if not name.endswith("_scale"):
            values = tensor.float() * stored.get(f"{name}_scale", 1)
            for theirs, ours in _RENAMED.items():
                name = name.replace(theirs, ours)
            weights[name] = values
    return weights
