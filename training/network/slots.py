"""Slots: the named places of a backbone whose tensors a method may change, and what can stand there instead.

A slot is a frozen layer (or the position table of an attention) seen as an operation and its tensors, or a place where
the backbone does nothing. A method may give every stream of activations other tensors there, or one of the kept
operations of `Op`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "ADAPTED",
    "MERGING",
    "NORMS",
    "PLACES",
    "LowRankProduct",
    "Op",
    "Slot",
    "SlotKind",
    "Weights",
    "among_patches",
    "compute",
    "position_bias",
]

SlotKind = Literal[
    "patch", "patch_norm", "norm", "qkv", "q", "kv", "spatial_reduction", "spatial_norm", "table", "proj", "fc1",
    "depthwise", "fc2", "merge_norm", "reduction", "stage_norm", "after_attn", "after_mlp", "tap", "after_tap",
    "prompts", "asked", "skip", "merge_prompts",
]  # fmt: skip

# Where low-rank adapters sit: every linear layer of a block (MTLoRA, arXiv 2403.20320; PVTv2 has q and kv for qkv).
ADAPTED: frozenset[SlotKind] = frozenset({"qkv", "q", "kv", "proj", "fc1", "fc2"})
NORMS: frozenset[SlotKind] = frozenset({"patch_norm", "norm", "spatial_norm", "merge_norm", "stage_norm"})
# Where the backbone does nothing: behind the two halves of a block, before they are added to what they read, and behind
# a stage's last layer, before decoders read it: two in a row, so that of two changes the first may be one for all.
# Those of prompts are in windows alone: where they begin; what they ask for, in a stage's last block; what that adds to
# the stage's map; and where they go on to the next stage.
PLACES: frozenset[SlotKind] = frozenset(
    {"after_attn", "after_mlp", "tap", "after_tap", "prompts", "asked", "skip", "merge_prompts"}
)
# Between two stages, behind what decoders read as the stage.
MERGING: frozenset[SlotKind] = frozenset({"merge_norm", "reduction", "merge_prompts"})


@dataclass(frozen=True, eq=False)
class Slot:
    """One place of a backbone; its name is unique there.

    stage: counted from 0; patch embedding belongs to the first, merging to the stage that it ends. block: None outside
    of blocks. last: whether it lies in the last block of its stage, or behind it. tensors: role ("weight", "bias",
    "table") -> parameter of the backbone. attributes: of the operation: stride and padding of a convolution, eps of a
    norm, window of a table.
    """

    name: str
    kind: SlotKind
    op: Literal["linear", "layer_norm", "conv", "position_bias", "identity"]
    stage: int
    tensors: Mapping[str, str]
    block: int | None = None
    last: bool = False
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class LowRankProduct:
    """What a weight was folded from: base (out, in) + scale * up (out, r) @ down (r, in)."""

    base: Tensor
    up: Tensor
    down: Tensor
    scale: float

    def fold(self) -> Tensor:
        """The weight, summed in float64 and rounded once to the type of `base`."""
        update = self.up.double() @ self.down.double()
        return (self.base.double() + self.scale * update).to(self.base.dtype)


@dataclass(frozen=True, eq=False)
class Weights:
    """The slot's operation with these tensors, by role; the backbone's own objects where nothing changed.

    product: what `weight` was folded from, where it was.
    """

    tensors: Mapping[str, Tensor]
    product: LowRankProduct | None = None


@dataclass(frozen=True, eq=False)
class Op:
    """An operation that no folding takes away: a row of `training.network.ops.OPS`, which says what it does.

    base: the tensors of the slot's own operation, by role. source: the stream whose input that operation reads: it is
    computed once for all streams that name the same; None = each its own. tensors, attributes: what the kind adds to
    it; no role is in both `base` and `tensors`.
    """

    kind: str
    base: Mapping[str, Tensor]
    tensors: Mapping[str, Tensor]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    source: Any = None

    def held(self) -> dict[str, Tensor]:
        """All tensors by role."""
        return {**self.base, **self.tensors}


def compute(slot: Slot, tensors: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """The slot's operation with `tensors` on its input: tokens (..., C), planes (N, C, H, W) or scores (..., T, T)."""
    match slot.op:
        case "linear":
            return F.linear(x, tensors["weight"], tensors.get("bias"))
        case "layer_norm":
            weight = tensors["weight"]
            return F.layer_norm(x, weight.shape, weight, tensors["bias"], slot.attributes["eps"])
        case "conv":
            weight = tensors["weight"]
            # A change may have made a depthwise convolution wider.
            groups = x.shape[1] // weight.shape[1]
            return F.conv2d(x, weight, tensors.get("bias"), groups=groups, **slot.attributes)
        case "position_bias":
            # Of a table, or finished before.
            finished = tensors.get("position_bias")
            bias = position_bias(tensors["table"], slot.attributes["window"]) if finished is None else finished
            return among_patches(x, bias)
        case "identity":
            return x


def among_patches(scores: Tensor, between: Tensor) -> Tensor:
    """Scores (..., tokens, tokens) plus `between` (..., T, T): the last T tokens of a window are its patches."""
    patches = between.shape[-1]
    others = scores.shape[-1] - patches
    if not others:
        return scores + between
    # Not padded: in a graph that would be a constant beside the parameter that it is made of.
    first, last = scores.split([others, patches], -2)
    left, right = last.split([others, patches], -1)
    return torch.cat([first, torch.cat([left, right + between], -1)], -2)


def position_bias(table: Tensor, window: int) -> Tensor:
    """(1, heads, T, T), T = window²: for each pair of a window's tokens the entry of their offset.

    table: ((2 window - 1)², heads). Source: Swin Transformer, arXiv 2103.14030, equation 4.
    """
    tokens = window * window
    index = _offsets(window).to(table.device)
    return table[index.view(-1)].view(1, tokens, tokens, -1).permute(0, 3, 1, 2).contiguous()


def _offsets(window: int) -> Tensor:
    """(T, T): the row of the table that belongs to each pair of tokens, offsets from -(window - 1) on, row by row."""
    place = torch.arange(window)
    rows, columns = (c.flatten() for c in torch.meshgrid(place, place, indexing="ij"))
    down = rows[:, None] - rows[None] + window - 1
    across = columns[:, None] - columns[None] + window - 1
    return down * (2 * window - 1) + across
