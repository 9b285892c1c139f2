"""Pyramid Vision Transformers v2 (Wang et al., arXiv 2106.13797) as slots and a walk; parameters and names are timm's.

Attention is global: every token asks a map that a convolution has made smaller, by 8, 4 and 2 in the first three
stages, so that weights fit every size. Patches overlap, and are merged by a convolution and its norm.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch.nn.functional as F
from timm.models.pvt_v2 import PyramidVisionTransformerV2, checkpoint_filter_fn
from torch import Tensor

from training.backbones.base import Backbone, Flow, conv_slot, drop_rates, linear_slot, norm_slot, place_slot
from training.network.slots import Slot

__all__ = ["PVT", "PVTS"]

# timm's constructor arguments; Wang et al. 2022, table 1.
PVTS: dict[str, dict] = {
    "pvt_v2_b0": {"depths": (2, 2, 2, 2), "embed_dims": (32, 64, 160, 256), "num_heads": (1, 2, 5, 8)},
    "pvt_v2_b1": {"depths": (2, 2, 2, 2), "embed_dims": (64, 128, 320, 512), "num_heads": (1, 2, 5, 8)},
    "pvt_v2_b2": {"depths": (3, 4, 6, 3), "embed_dims": (64, 128, 320, 512), "num_heads": (1, 2, 5, 8)},
}


class PVT(Backbone):
    """A PVT of `PVTS`, randomly initialised, for images whose sides are multiples of 32."""

    def __init__(self, name: str, *, drop_path: float = 0.0) -> None:
        trunk = PyramidVisionTransformerV2(num_classes=0, **PVTS[name])
        depths = PVTS[name]["depths"]
        self._drops = drop_rates(drop_path, depths)
        self._heads: tuple[int, ...] = PVTS[name]["num_heads"]
        self.widths = PVTS[name]["embed_dims"]
        super().__init__(name, trunk, list(_slots(trunk)))

    def walk(self, images: Tensor, flow: Flow) -> None:
        x = self._embed("patch_embed", images, flow)
        for stage, drops in enumerate(self._drops):
            for block, drop_path in enumerate(drops):
                x = self._block(x, flow, stage, block, drop_path)
            x = flow.slot(self._at[f"stages.{stage}.norm"], x)
            x = flow.slot(self._at[f"stages.{stage}.tap"], x)
            x = flow.slot(self._at[f"stages.{stage}.after_tap"], x)
            flow.tap("stage", stage, x)
            if stage + 1 < len(self._drops):
                x = self._embed(f"stages.{stage + 1}.downsample", flow.each(_planes, x), flow)
            flow.tap("merged", stage, x)

    def renamed(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        return checkpoint_filter_fn(weights, self.trunk)  # of the official layout; timm's own stays

    def _embed(self, path: str, planes: Any, flow: Flow) -> Any:
        """Planes (N, C, H, W) -> fewer and wider tokens (N, h, w, C')."""
        x = flow.slot(self._at[f"{path}.proj"], planes)
        x = flow.each(_tokens, x)
        return flow.slot(self._at[f"{path}.norm"], x)

    def _block(self, x: Any, flow: Flow, stage: int, block: int, drop_path: float) -> Any:
        path = f"stages.{stage}.blocks.{block}"
        h, x = flow.slot(self._at[f"{path}.norm1"], x, x)
        small = h
        # Before the queries: groups that part at them have this in common.
        if f"{path}.attn.sr" in self._at:
            small, h, x = flow.slot(self._at[f"{path}.attn.sr"], flow.each(_planes, h), h, x)
            small, h, x = flow.slot(self._at[f"{path}.attn.norm"], flow.each(_tokens, small), h, x)
        q, small, x = flow.slot(self._at[f"{path}.attn.q"], h, small, x)
        kv, q, x = flow.slot(self._at[f"{path}.attn.kv"], small, q, x)
        h = flow.each(partial(_attend, heads=self._heads[stage]), q, kv)
        h, x = flow.slot(self._at[f"{path}.attn.proj"], h, x)
        h, x = flow.slot(self._at[f"{path}.attn.out"], h, x)
        x = flow.residual(x, h, drop_path)
        h, x = flow.slot(self._at[f"{path}.norm2"], x, x)
        h, x = flow.slot(self._at[f"{path}.mlp.fc1"], h, x)
        h, x = flow.slot(self._at[f"{path}.mlp.dwconv"], flow.each(_planes, h), x)
        h, x = flow.slot(self._at[f"{path}.mlp.fc2"], flow.each(_activated, h), x)
        h, x = flow.slot(self._at[f"{path}.mlp.out"], h, x)
        return flow.residual(x, h, drop_path)


def _slots(trunk: Any) -> Iterator[Slot]:
    """In the order of the walk."""
    yield conv_slot("patch_embed.proj", "patch", trunk.patch_embed.proj, stage=0)
    yield norm_slot("patch_embed.norm", "patch_norm", trunk.patch_embed.norm, stage=0)
    for stage, module in enumerate(trunk.stages):
        if module.downsample is not None:
            path = f"stages.{stage}.downsample"
            yield conv_slot(f"{path}.proj", "reduction", module.downsample.proj, stage=stage - 1)
            yield norm_slot(f"{path}.norm", "merge_norm", module.downsample.norm, stage=stage - 1)
        for number, block in enumerate(module.blocks):
            where = {"stage": stage, "block": number, "last": number + 1 == len(module.blocks)}
            yield from _block_slots(f"stages.{stage}.blocks.{number}", block, where)
        yield norm_slot(f"stages.{stage}.norm", "stage_norm", module.norm, stage=stage)
        yield place_slot(f"stages.{stage}.tap", "tap", stage=stage, last=True)
        yield place_slot(f"stages.{stage}.after_tap", "after_tap", stage=stage, last=True)


def _block_slots(path: str, block: Any, where: dict[str, Any]) -> Iterator[Slot]:
    yield norm_slot(f"{path}.norm1", "norm", block.norm1, **where)
    if block.attn.sr is not None:
        yield conv_slot(f"{path}.attn.sr", "spatial_reduction", block.attn.sr, **where)
        yield norm_slot(f"{path}.attn.norm", "spatial_norm", block.attn.norm, **where)
    yield linear_slot(f"{path}.attn.q", "q", block.attn.q, **where)
    yield linear_slot(f"{path}.attn.kv", "kv", block.attn.kv, **where)
    yield linear_slot(f"{path}.attn.proj", "proj", block.attn.proj, **where)
    yield place_slot(f"{path}.attn.out", "after_attn", **where)
    yield norm_slot(f"{path}.norm2", "norm", block.norm2, **where)
    yield linear_slot(f"{path}.mlp.fc1", "fc1", block.mlp.fc1, **where)
    yield conv_slot(f"{path}.mlp.dwconv", "depthwise", block.mlp.dwconv, **where)
    yield linear_slot(f"{path}.mlp.fc2", "fc2", block.mlp.fc2, **where)
    yield place_slot(f"{path}.mlp.out", "after_mlp", **where)


def _tokens(planes: Tensor) -> Tensor:
    """(N, C, h, w) -> (N, h, w, C)."""
    return planes.permute(0, 2, 3, 1)


def _planes(tokens: Tensor) -> Tensor:
    """(N, h, w, C) -> (N, C, h, w)."""
    return tokens.permute(0, 3, 1, 2)


def _activated(planes: Tensor) -> Tensor:
    """(N, C, h, w) -> tokens (N, h, w, C) behind GELU."""
    return F.gelu(_tokens(planes))


def _attend(q: Tensor, kv: Tensor, *, heads: int) -> Tensor:
    """Queries (N, h, w, C) of all tokens, keys and values (N, h', w', 2 C) of fewer -> (N, h, w, C)."""
    _, h, w, c = q.shape
    q = q.reshape(-1, h * w, heads, c // heads).transpose(1, 2)
    k, v = kv.reshape(-1, kv.shape[1] * kv.shape[2], 2, heads, c // heads).permute(2, 0, 3, 1, 4).unbind(0)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    x = scores.softmax(-1) @ v
    return x.transpose(1, 2).reshape(-1, h, w, c)
