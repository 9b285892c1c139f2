"""DoRA (arXiv 2402.09353) as FAAR has it (arXiv 2603.20403): LoRA for a weight's directions, a length for each row.

    W_t = m_t * (W + scale * up_t down_t) / ||W + scale * up_t down_t||    norms of rows (one an output)

Published: the equation; in training the norm counts as a constant (DoRA, section 4.3); rank 64 at the start, which
shrinks: that is a rule of its own here, `rank_shrink`, for any adapters. Ours: the trunk and the tasks' teeth as MTLoRA
has them, tasks' adapters of the same rank; m_t is kept as a share of ||W||, 1 at the start, and so is right for any
backbone that is loaded; FAAR's decoder, which works on frequencies, is left out. Counts at one layer and stream:
r (in + out) + out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ptsa_serve.task_tree import TaskTree
from training.backbones.base import Backbone, Tap
from training.methods.base import Base, Change, Method, MethodSpec
from training.methods.comb import comb
from training.methods.options import LowRankOptions, all_shared, ranks_of
from training.network.changes import LowRank, full_precision
from training.network.layout import Stream
from training.network.slots import Slot, Weights

__all__ = ["DORA"]


@dataclass(frozen=True)
class Options(LowRankOptions):
    """rank: of the trunk's adapters and of the tasks'."""

    rank: int | list[int] = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        all_shared(self)


class Directed(LowRank):
    """See above."""

    def __init__(self, options: Options, weight: Tensor, streams: Sequence[Stream], rank: int) -> None:
        super().__init__(weight, streams, rank=rank, scale=options.scale, dropout=options.dropout)
        self.length = nn.ParameterList(torch.ones(len(weight)) for _ in streams)

    def forward(self, slot: Slot, base: Base, x: Tensor, streams: Sequence[Stream]) -> Tensor:
        y = super().forward(slot, {"weight": base["weight"]}, x, streams)
        gains = torch.stack([self._gain(base["weight"], self.version(stream)) for stream in streams])
        y = (y.reshape(len(streams), -1, y.shape[-1]) * gains[:, None]).reshape(y.shape).to(y.dtype)
        return y + base["bias"] if "bias" in base else y

    def effective(self, slot: Slot, base: Base, stream: Stream) -> Weights:
        number, weight = self.version(stream), base["weight"]
        found, length = super().effective(slot, base, stream).tensors["weight"], self.length[number]
        if found is weight and not length.is_meta and (length == 1).all():
            return Weights(base)
        turned = self._turned(weight.double(), number)
        gain = length.detach().double() * weight.double().norm(dim=1) / turned.norm(dim=1)
        return Weights({**base, "weight": (gain[:, None] * turned).to(weight.dtype)})

    def owners(self) -> Mapping[str, frozenset[str]]:
        return {**super().owners()} | {f"length.{i}": frozenset(own.tasks) for i, own in enumerate(self.streams)}

    def _gain(self, weight: Tensor, number: int) -> Tensor:
        """What each output of W + scale * up down is multiplied by, (out,)."""
        # The two norms are almost the same.
        with torch.no_grad(), full_precision(weight):
            share = weight.norm(dim=1) / self._turned(weight, number).norm(dim=1)
        return self.length[number] * share

    def _turned(self, weight: Tensor, number: int) -> Tensor:
        down, up = (factor.detach().to(weight.dtype) for factor in self.pair(number))
        return weight + self.scale * up @ down


def build(backbone: Backbone, tree: TaskTree, options: Options, tap: Tap) -> Method:
    ranks = ranks_of(options.rank, backbone)

    def make(slot: Slot, weight: Tensor, streams: Sequence[Stream]) -> Change | None:
        return Directed(options, weight, streams, ranks[slot.stage]) if ranks[slot.stage] else None

    return comb(make, backbone, tree, options, tap)


DORA = MethodSpec(
    build=build,
    options=Options,
    tree="shared",
    kind="low rank",
    source="arXiv 2402.09353, placed as in arXiv 2603.20403",
    trains="adapters with lengths of rows that all tasks share, others a task at the ends of stages; by default patch "
    "embedding, merging, norms and position tables too",
    folds="wholly: the second half of each stage's last block for each task",
)
