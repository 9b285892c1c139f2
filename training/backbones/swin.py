"""Swin Transformers (Liu et al., arXiv 2103.14030) as slots and a walk; parameters and names are timm's.

Windows have 7 x 7 tokens at every size and are never shrunk, so that weights fit every size; maps that do not divide by
7 are padded behind the norm, as in the official code.
"""

import math
import re
from collections.abc import Iterator
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from timm.models.swin_transformer import SwinTransformer
from torch import SymInt, Tensor, nn

from training.backbones.base import Backbone, Flow, conv_slot, drop_rates, linear_slot, norm_slot, place_slot
from training.backbones.prompts import are_prompts, ask, conditioned, joined, patches, pooled
from training.network.slots import Slot, among_patches

__all__ = ["SWINS", "WINDOW", "Swin"]

WINDOW = 7
SHIFT = WINDOW // 2
TABLE = "relative_position_bias_table"
BUFFERS = ("relative_position_index", "attn_mask")  # in official files; made anew for every size
MASKED = -100.0  # official code: after the softmax its weight is 0 in fp32

# timm's constructor arguments. nano is tiny at half the width; the others are Liu et al. 2021, table 7.
SWINS: dict[str, dict] = {
    "swin_nano": {"embed_dim": 48, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24)},
    "swin_tiny": {"embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24)},
    "swin_small": {"embed_dim": 96, "depths": (2, 2, 18, 2), "num_heads": (3, 6, 12, 24)},
    "swin_base": {"embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32)},
    "swin_large": {"embed_dim": 192, "depths": (2, 2, 18, 2), "num_heads": (6, 12, 24, 48)},
}


class Swin(Backbone):
    """A Swin of `SWINS`, randomly initialised, for images whose sides are multiples of 32."""

    def __init__(self, name: str, *, drop_path: float = 0.0) -> None:
        # Built for one size; the walk makes windows and masks for the size that it sees.
        trunk = SwinTransformer(window_size=WINDOW, num_classes=0, always_partition=True, **SWINS[name])
        trunk.norm = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]  every tap is before it
        depths = SWINS[name]["depths"]
        self._drops = drop_rates(drop_path, depths)
        self._heads: tuple[int, ...] = SWINS[name]["num_heads"]
        self.widths = tuple(SWINS[name]["embed_dim"] * 2**stage for stage in range(len(depths)))
        super().__init__(name, trunk, list(_slots(trunk)))

    def walk(self, images: Tensor, flow: Flow) -> None:
        x = flow.slot(self._at["patch_embed.proj"], images)
        x = flow.each(_channels_last, x)
        x = flow.slot(self._at["patch_embed.norm"], x)
        prompts, x = flow.slot(self._at["prompts"], x, x)
        rest: list[Any] = [prompts] if are_prompts(prompts) else []
        size = (images.shape[-2] // 4, images.shape[-1] // 4)
        for stage, drops in enumerate(self._drops):
            for block, drop_path in enumerate(drops):
                x, *rest = (self._prompted if rest else self._block)(flow, stage, block, size, drop_path, x, *rest)
            size = ((size[0] + 1) // 2, (size[1] + 1) // 2)
            x, *rest = self._at_the_end(flow, stage, x, *rest)
            flow.tap("stage", stage, x)
            if stage + 1 < len(self._drops):
                merging = f"layers.{stage + 1}.downsample"
                x = flow.each(_neighbours, x)
                x, *rest = _through(flow, self._at[f"{merging}.norm"], x, *rest)
                x, *rest = _through(flow, self._at[f"{merging}.reduction"], x, *rest)
                *rest, x = _through(flow, self._at[f"{merging}.prompts"], *rest, x)
            flow.tap("merged", stage, x)

    def renamed(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        # The official layout has patches merged at the end of a stage, timm's at the start of the next one.
        official = "layers.0.downsample.reduction.weight" in weights
        own, found = self.trunk.state_dict(), {}
        for name, tensor in weights.items():
            if name.endswith(BUFFERS):
                continue
            if official:
                name = re.sub(r"^layers\.(\d+)\.downsample", lambda at: f"layers.{int(at[1]) + 1}.downsample", name)
            found[name] = _resized(tensor, own[name]) if name.endswith(TABLE) and name in own else tensor
        return found

    def _block(
        self, flow: Flow, stage: int, block: int, size: tuple[int, int], drop_path: float, x: Any
    ) -> tuple[Any, ...]:
        path, shift, heads = f"layers.{stage}.blocks.{block}", SHIFT * (block % 2), self._heads[stage]
        h, x = flow.slot(self._at[f"{path}.norm1"], x, x)
        h = flow.each(partial(_to_windows, shift=shift), h)
        h, x = flow.slot(self._at[f"{path}.attn.qkv"], h, x)
        scores = flow.each(partial(_scores, heads=heads), h)
        scores, h, x = flow.slot(self._at[f"{path}.attn"], scores, h, x)
        h = flow.each(partial(_attend, shift=shift, size=size), scores, h)
        if asked := self._at.get(f"{path}.attn.asked"):
            h, x = flow.slot(asked, h, x)
        h, x = flow.slot(self._at[f"{path}.attn.proj"], h, x)
        h = flow.each(partial(_from_windows, shift=shift, size=size), h)
        h, x = flow.slot(self._at[f"{path}.attn.out"], h, x)
        x = flow.residual(x, h, drop_path)
        h, x = flow.slot(self._at[f"{path}.norm2"], x, x)
        h, x = flow.slot(self._at[f"{path}.mlp.fc1"], h, x)
        h = flow.each(F.gelu, h)
        h, x = flow.slot(self._at[f"{path}.mlp.fc2"], h, x)
        h, x = flow.slot(self._at[f"{path}.mlp.out"], h, x)
        return (flow.residual(x, h, drop_path),)

    def _prompted(
        self, flow: Flow, stage: int, block: int, size: tuple[int, int], drop_path: float, x: Any, p: Any
    ) -> tuple[Any, ...]:
        """The same with prompts in the windows: the map, the prompts, and in a last block what tasks have asked for."""
        path, shift, heads = f"layers.{stage}.blocks.{block}", SHIFT * (block % 2), self._heads[stage]
        back = partial(_from_windows, shift=shift, size=size)
        h, x, p = flow.slot(self._at[f"{path}.norm1"], x, x, p)
        h = flow.each(joined, flow.again(p), flow.each(partial(_to_windows, shift=shift), h))
        h, x, p = flow.slot(self._at[f"{path}.attn.qkv"], h, x, p)
        scores = flow.each(partial(_scores, heads=heads), h)
        scores, h, x, p = flow.slot(self._at[f"{path}.attn"], scores, h, x, p)
        rest: list[Any] = [x, p]
        asked = flow.each(ask, scores, h, p)
        h = flow.each(partial(_attend, shift=shift, size=size), scores, h)
        if place := self._at.get(f"{path}.attn.asked"):
            asked, h, *rest = flow.slot(place, asked, h, *rest)
            asked = flow.each(conditioned, asked, h)
            h = flow.each(torch.add, h, asked)
            rest.append(flow.each(back, flow.each(patches, asked, rest[1])))
        h, *rest = flow.slot(self._at[f"{path}.attn.proj"], h, *rest)
        q = flow.each(pooled, h, rest[1])
        h = flow.each(back, flow.each(patches, h, rest[1]))
        h, q, *rest = flow.slot(self._at[f"{path}.attn.out"], h, q, *rest)
        x = flow.residual(rest[0], h, drop_path)
        h, x, q, *rest = flow.slot(self._at[f"{path}.norm2"], x, x, q, *rest[1:])
        q = flow.again(q)
        h, x, q, *rest = flow.slot(self._at[f"{path}.mlp.fc1"], h, x, q, *rest)
        h, q = flow.each(F.gelu, h), flow.each(F.gelu, flow.again(q))
        h, x, q, *rest = flow.slot(self._at[f"{path}.mlp.fc2"], h, x, q, *rest)
        q = flow.again(q)
        h, x, q, p, *rest = flow.slot(self._at[f"{path}.mlp.out"], h, x, q, *rest)
        return flow.residual(x, h, drop_path), flow.residual(p, q, drop_path), *rest

    def _at_the_end(self, flow: Flow, stage: int, x: Any, *rest: Any) -> list[Any]:
        """The places behind a stage's last block; returns the map, and the prompts if there are any."""
        skip, tap, after = (self._at[f"layers.{stage}.{place}"] for place in ("skip", "tap", "after_tap"))
        if not rest:
            return [flow.slot(after, flow.slot(tap, flow.slot(skip, x)))]
        away, x, prompts = flow.slot(skip, flow.each(torch.sub, rest[1], x), x, rest[0])
        x, prompts = flow.slot(tap, flow.each(torch.add, x, away), prompts)
        return flow.slot(after, x, prompts)


def _through(flow: Flow, slot: Slot, *values: Any) -> list[Any]:
    """`flow.slot`, which returns a list of several values alone."""
    return flow.slot(slot, *values) if len(values) > 1 else [flow.slot(slot, *values)]


def _slots(trunk: Any) -> Iterator[Slot]:
    """In the order of the walk."""
    yield conv_slot("patch_embed.proj", "patch", trunk.patch_embed.proj, stage=0)
    yield norm_slot("patch_embed.norm", "patch_norm", trunk.patch_embed.norm, stage=0)
    yield place_slot("prompts", "prompts", stage=0)
    for stage, module in enumerate(trunk.layers):
        if stage:
            path, merging = f"layers.{stage}.downsample", module.downsample
            yield norm_slot(f"{path}.norm", "merge_norm", merging.norm, stage=stage - 1)
            yield linear_slot(f"{path}.reduction", "reduction", merging.reduction, stage=stage - 1)
            yield place_slot(f"{path}.prompts", "merge_prompts", stage=stage - 1)
        for number, block in enumerate(module.blocks):
            path = f"layers.{stage}.blocks.{number}"
            where = {"stage": stage, "block": number, "last": number + 1 == len(module.blocks)}
            table = {"table": f"{path}.attn.{TABLE}"}
            yield norm_slot(f"{path}.norm1", "norm", block.norm1, **where)
            yield linear_slot(f"{path}.attn.qkv", "qkv", block.attn.qkv, **where)
            yield Slot(f"{path}.attn", "table", "position_bias", tensors=table, attributes={"window": WINDOW}, **where)
            if where["last"]:
                yield place_slot(f"{path}.attn.asked", "asked", **where)
            yield linear_slot(f"{path}.attn.proj", "proj", block.attn.proj, **where)
            yield place_slot(f"{path}.attn.out", "after_attn", **where)
            yield norm_slot(f"{path}.norm2", "norm", block.norm2, **where)
            yield linear_slot(f"{path}.mlp.fc1", "fc1", block.mlp.fc1, **where)
            yield linear_slot(f"{path}.mlp.fc2", "fc2", block.mlp.fc2, **where)
            yield place_slot(f"{path}.mlp.out", "after_mlp", **where)
        yield place_slot(f"layers.{stage}.skip", "skip", stage=stage, last=True)
        yield place_slot(f"layers.{stage}.tap", "tap", stage=stage, last=True)
        yield place_slot(f"layers.{stage}.after_tap", "after_tap", stage=stage, last=True)


def _resized(table: Tensor, like: Tensor) -> Tensor:
    """A position table of another window at the size of `like`, bicubic as in the official code; or as it is."""
    heads, size = like.shape[1], math.isqrt(len(like))
    side = math.isqrt(table.numel() // heads)
    if side in (0, size) or table.shape != (side * side, heads):
        return table
    planes = table.T.reshape(1, heads, side, side)
    return F.interpolate(planes, size=(size, size), mode="bicubic").flatten(2)[0].T


def _channels_last(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)


def _neighbours(x: Tensor) -> Tensor:
    """(N, h, w, C) -> (N, h/2, w/2, 4 C): the four tokens of a square, column by column."""
    n, h, w, c = x.shape
    x = F.pad(x, (0, 0, 0, w % 2, 0, h % 2))
    return x.reshape(n, (h + 1) // 2, 2, (w + 1) // 2, 2, c).permute(0, 1, 3, 4, 2, 5).flatten(3)


def _to_windows(x: Tensor, *, shift: int) -> Tensor:
    """(N, h, w, C) -> windows (N * W, T, C), shifted up and left by `shift`."""
    _, h, w, c = x.shape
    if shift:
        x = _rolled(x, -shift)
    rows, columns = _windows(h), _windows(w)
    x = F.pad(x, (0, 0, 0, columns * WINDOW - w, 0, rows * WINDOW - h))
    x = x.view(-1, rows, WINDOW, columns, WINDOW, c).permute(0, 1, 3, 2, 4, 5)
    return x.contiguous().view(-1, WINDOW * WINDOW, c)


def _from_windows(x: Tensor, *, shift: int, size: tuple[int, int]) -> Tensor:
    """The inverse of `_to_windows`, for a map of `size` (h, w)."""
    (h, w), c = size, x.shape[-1]
    rows, columns = _windows(h), _windows(w)
    x = x.view(-1, rows, columns, WINDOW, WINDOW, c).permute(0, 1, 3, 2, 4, 5)
    x = x.contiguous().view(-1, rows * WINDOW, columns * WINDOW, c)[:, :h, :w].contiguous()
    return _rolled(x, shift) if shift else x


def _windows(side: Any) -> Any:
    """Windows along a side of so many tokens; the last one may be padded."""
    # In a graph, what is negative is not rounded down.
    return (side + WINDOW - 1) // WINDOW


def _rolled(x: Tensor, by: int) -> Tensor:
    """(N, h, w, C) moved down and right by `by` tokens, those at the ends to the other ones."""
    if all(isinstance(side, int) for side in x.shape[1:3]):
        return torch.roll(x, (by, by), (1, 2))
    # Of sides that are unknown an exporter makes slices, which are wrong for sides shorter than `by`.
    for axis in (1, 2):
        place = torch.arange(x.shape[axis], device=x.device)
        # A tensor to divide by: exporters know no remainder of a symbol.
        x = x.index_select(axis, (place - by) % place.new_full((1,), x.shape[axis]))
    return x


def _split(qkv: Tensor, heads: int) -> Tensor:
    """(W, T, 3 C) -> (3, W, heads, T, C / heads)."""
    windows, tokens, _ = qkv.shape
    return qkv.reshape(windows, tokens, 3, heads, -1).permute(2, 0, 3, 1, 4)


def _scores(qkv: Tensor, *, heads: int) -> Tensor:
    """How much each token of a window asks for each other, before biases: (W, heads, T, T)."""
    q, k, _ = _split(qkv, heads).unbind(0)
    return (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)


def _attend(scores: Tensor, qkv: Tensor, *, shift: int, size: tuple[int, int]) -> Tensor:
    """Scores (W, heads, T, T) and (W, T, 3 C) of a map of `size` (h, w) -> tokens (W, T, C)."""
    _, heads, tokens, _ = scores.shape
    _, _, v = _split(qkv, heads).unbind(0)
    if shift:
        mask = _mask(*size, scores)
        scores = among_patches(scores.view(-1, mask.shape[0], heads, tokens, tokens), mask[None, :, None])
        scores = scores.view(-1, heads, tokens, tokens)
    x = scores.softmax(-1) @ v
    return x.transpose(1, 2).reshape(-1, tokens, heads * v.shape[-1])


def _mask(h: int | SymInt, w: int | SymInt, like: Tensor) -> Tensor:
    """(W, T, T) for shifted windows of a map (h, w): 0 between tokens that were neighbours, -100 between others.

    Of a size that is known it is a constant, also in a graph that is traced; otherwise it is computed there.
    """
    if isinstance(h, int) and isinstance(w, int):
        return torch.tensor(_known_mask(h, w), dtype=like.dtype, device=like.device)
    return _between_regions(h, w, torch).to(like)


@lru_cache(maxsize=64)
def _known_mask(h: int, w: int) -> NDArray[np.float32]:
    """NumPy, as it is kept: a tensor that an exporter traces must not be."""
    return _between_regions(h, w, np).astype(np.float32)


def _between_regions(h: Any, w: Any, library: Any) -> Any:
    """`_mask` as an array of `library`, torch or NumPy, in operations that both have."""
    rows, columns = (_parts(_windows(side), library) for side in (h, w))
    regions = (3 * rows[:, None, :, None] + columns[None, :, None, :]).reshape(-1, WINDOW * WINDOW)
    return library.where(regions[:, None] == regions[:, :, None], 0.0, MASKED)


def _parts(windows: Any, library: Any) -> Any:
    """(windows, T^½) along one side: 0, but in the last window 1 for what stayed and 2 for what came from the front."""
    place = library.arange(windows * WINDOW).reshape(windows, WINDOW)
    return 1 * (place >= (windows - 1) * WINDOW) + 1 * (place >= windows * WINDOW - SHIFT)
