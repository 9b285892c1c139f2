"""A frozen Swin that several task groups pass through at once, stacked on the batch axis.

At a stage with g groups the activations are (g * N, h, w, C), stream by stream: one large product with each frozen
weight serves all groups. Where the tree splits, a stream is repeated into its children, after the merging of
patches, which all share. timm's blocks stay as they are; only their linear layers are wrapped.
"""

from collections.abc import Sequence
from typing import Any

from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn

from training.adapters import SCALE, StreamLinear
from training.swin import stages
from training.tree import TaskTree

__all__ = ["SLOTS", "StreamedSwin"]

# Where adapters sit in a block: path of the module that owns the layer, name of the layer.
SLOTS = (("attn", "qkv"), ("attn", "proj"), ("mlp", "fc1"), ("mlp", "fc2"))


class StreamedSwin(nn.Module):
    """timm's Swin with an adapter of `ranks[s]` for each group of stage s in every slot; rank 0 leaves a stage bare."""

    def __init__(self, swin: SwinTransformer, tree: TaskTree, ranks: Sequence[int], *, scale: float = SCALE) -> None:
        super().__init__()
        layers = stages(swin)
        if len(tree.stages) != len(layers) or len(ranks) != len(layers):
            raise ValueError(
                f"the backbone has {len(layers)} stages, the tree {len(tree.stages)}, the ranks {len(ranks)}"
            )
        self.swin = swin
        self.tree = tree
        for stage, (layer, rank) in enumerate(zip(layers, ranks, strict=True)):
            if rank:
                _adapt(layer, streams=len(tree.groups(stage)), rank=rank, scale=scale)
        self._adapters = [[m for m in layer.modules() if isinstance(m, StreamLinear)] for layer in layers]

    def forward(self, images: Tensor, tasks: Sequence[str]) -> dict[str, list[Tensor]]:
        """Stage outputs of each task: (N, h, w, C) at strides 4, 8, 16, 32, for normalised images (N, 3, H, W).

        Only the groups that hold one of `tasks` are computed.
        """
        n = images.shape[0]
        x = self.swin.patch_embed(images)
        taps: dict[str, list[Tensor]] = {task: [] for task in tasks}
        before = [0]
        for stage, layer in enumerate(stages(self.swin)):
            active = sorted({self.tree.group_of(stage, task) for task in tasks})
            x = layer.downsample(x)
            x = self._split(x, n, stage, before, active)
            for adapter in self._adapters[stage]:
                adapter.active = active
            x = layer.blocks(x)
            streams = x.unflatten(0, (len(active), n))
            for task in tasks:
                taps[task].append(streams[active.index(self.tree.group_of(stage, task))])
            before = active
        return taps

    def _split(self, x: Tensor, n: int, stage: int, before: list[int], active: list[int]) -> Tensor:
        """Repeat each parent's stream for its children: (len(before) * N, ...) to (len(active) * N, ...)."""
        if stage == 0:
            # The stages' first partition may already have several groups; all see the same patches.
            return x.repeat(len(active), 1, 1, 1) if len(active) > 1 else x
        parents = [before.index(self.tree.parent(stage, group)) for group in active]
        if parents == list(range(len(before))):
            return x
        return x.unflatten(0, (len(before), n))[parents].flatten(0, 1)


def _adapt(layer: Any, *, streams: int, rank: int, scale: float) -> None:
    for block in layer.blocks:
        for owner, name in SLOTS:
            module = getattr(block, owner)
            setattr(module, name, StreamLinear(getattr(module, name), streams=streams, rank=rank, scale=scale))
