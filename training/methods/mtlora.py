"""MTLoRA (arXiv 2403.20320), its released form: LoRA for all tasks, and features of each task at the end of a stage.

In the last block of every stage the features of a task leave the trunk at the attention's projection and are read by
its decoder at the stage's end; the next stage sees the trunk alone. There, with two inputs (mode `matrix`):

    trunk     y   = W x   + b + scale * up   down   x
    task      y_t = W x   + b + scale * up_t down_t x_t

so the dense product is the trunk's, and no folding into one weight can give the same. The task-agnostic term is not in
the task's features. Dropout acts on the trunk's input alone; at the projection, where tasks have none of their own, on
theirs too. Counts: 70,656 r + 17,280 r_t T on Swin-T, beside what is trained in full.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptsa_serve.task_tree import TaskTree
from training.backbones.base import Backbone, Tap
from training.methods.base import Base, Change, Method, MethodSpec
from training.methods.comb import FORK, comb, lora
from training.methods.options import LowRankOptions, all_shared, ranks_of, whole_number
from training.network.changes import factors
from training.network.layout import Stream
from training.network.slots import Op, Slot, compute

__all__ = ["MTLORA"]


@dataclass(frozen=True)
class Options(LowRankOptions):
    """task_rank: of the tasks' own adapters. merge=lora is "MTLoRA+"."""

    task_rank: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        all_shared(self)
        whole_number("task_rank", self.task_rank)


class TwoInputs(Change):
    """The trunk's adapter and one for each task, in the last block of a stage; see above."""

    def __init__(self, slot: Slot, weight: Tensor, tasks: Sequence[str], rank: int, options: Options) -> None:
        super().__init__()
        self.tasks = tuple(tasks)
        self.scale = options.scale
        self.dropout = nn.Dropout(options.dropout)
        self.down, self.up = factors(weight, rank)
        pairs = {task: factors(weight, options.task_rank) for task in tasks}
        self.task_down = nn.ParameterDict({task: down for task, (down, _) in pairs.items()})
        self.task_up = nn.ParameterDict({task: up for task, (_, up) in pairs.items()})

    def forward(self, slot: Slot, base: Base, x: Tensor, streams: Sequence[Stream]) -> Tensor:
        parts = list(x.unflatten(0, (len(streams), -1)))
        trunk = next(i for i, stream in enumerate(streams) if not stream.tooth)
        dense, dropped = compute(slot, base, parts[trunk]), self.dropout(parts[trunk])
        parts = [dropped if i == trunk or slot.kind == FORK else part for i, part in enumerate(parts)]
        return torch.cat([self._add(dense, part, stream) for part, stream in zip(parts, streams, strict=True)])

    def version(self, stream: Stream) -> str:
        return stream.tasks[0] if stream.tooth else ""

    def effective(self, slot: Slot, base: Base, stream: Stream) -> Op:
        down, up = self._factors(stream)
        tensors = {"up": up.detach(), "down": down.detach()}
        return Op("low_rank_add", base, tensors, {"scale": self.scale}, source=Stream(self.tasks))

    def owners(self) -> Mapping[str, frozenset[str]]:
        own = {f"task_{part}.{task}": frozenset({task}) for task in self.tasks for part in ("down", "up")}
        return own | dict.fromkeys(("down", "up"), frozenset(self.tasks))

    def _add(self, dense: Tensor, x: Tensor, stream: Stream) -> Tensor:
        down, up = self._factors(stream)
        return dense + F.linear(F.linear(x, down) * self.scale, up)

    def _factors(self, stream: Stream) -> tuple[Tensor, Tensor]:
        if stream.tooth:
            return self.task_down[stream.tasks[0]], self.task_up[stream.tasks[0]]
        return self.down, self.up


def build(backbone: Backbone, tree: TaskTree, options: Options, tap: Tap) -> Method:
    ranks, shared = ranks_of(options.rank, backbone), lora(backbone, options)

    def make(slot: Slot, weight: Tensor, streams: Sequence[Stream]) -> Change | None:
        rank = ranks[slot.stage]
        if rank and len(streams) > 1:
            return TwoInputs(slot, weight, tree.tasks, rank, options)
        return shared(slot, weight, streams)

    return comb(make, backbone, tree, options, tap)


MTLORA = MethodSpec(
    build=build,
    options=Options,
    tree="shared",
    kind="low rank",
    source="arXiv 2403.20320 and its released code",
    trains="adapters that all tasks share, small ones a task at the ends of stages; by default patch embedding, "
    "merging, norms and position tables too",
    folds="the shared adapters; at the ends of stages low-rank sums stay",
)
