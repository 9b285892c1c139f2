"""TADFormer (arXiv 2501.04293): a prompt a task in every window, and filters of the photo inside the low-rank space.

The prompts run through the blocks beside the patches: they attend and are attended to in every window, and go on as
their mean over the windows, then through the MLP; a trained layer widens them between stages. Adapters A, B are shared
by all tasks and, but for the last block of a stage, folded. There the features of task t leave the trunk behind the
attention, o, by what its prompt q_t asks for, head by head:

    k_t = GELU(q_t key) o     x_t = norm(o + k_t)     y_t = W o + b + scale * B (theta(A x_t) * A x_t)
    and at fc1 and fc2        y_t = W x + b + scale * B (theta(A x_t) * A x_t), x the trunk's input

theta makes a 3 x 3 kernel for each channel of the rank space from its mean: for every window at the projection, for the
whole map at fc1 and fc2. All tasks have the same A, B, theta and differ by their prompts. At the end of the stage

    f_t = sigmoid(g) k_t + (1 - sigmoid(g)) out_t

Patch merging is frozen. Published: all of this, its starts (prompts around 1, g = 0, B = 0, so that a network does not
begin as the backbone's) and its counts; as in the code, the norm is in every block, though those before the last read
nothing. Ours: one prompt a task; dropout acts on what enters A alone, not on k_t; windows that a map does not fill are
padded, and kernels see the padding.

Counts on Swin-T, decoders and patch embedding with it, four tasks: 7,379,262 at rank 64.
"""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ptsa_serve.task_tree import TaskTree
from training.backbones.base import Backbone, Tap
from training.errors import ConfigError
from training.methods.base import Base, Change, Method, MethodSpec
from training.methods.grouped import adapted, extras
from training.methods.options import LowRankOptions, one_of, ranks_of
from training.network.changes import LowRank, factors
from training.network.layout import Layout, Stream
from training.network.ops import apply, dense
from training.network.slots import Op, Slot

__all__ = ["TADFORMER"]

FILTERED = ("proj", "fc1", "fc2")


@dataclass(frozen=True)
class Options(LowRankOptions):
    """Patch merging is frozen unless asked otherwise; kernels live in the rank space, so no stage has rank 0."""

    merge: Literal["train", "lora", "frozen"] = "frozen"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("norms", self.norms, ("shared", "frozen"))
        one_of("tables", self.tables, ("shared", "frozen"))
        if 0 in (self.rank if isinstance(self.rank, list) else [self.rank]):
            raise ConfigError(f"rank is {self.rank}; tadformer's filters need at least 1 in every stage")


class Kept(Change):
    """Parameters of all tasks in an operation that stays: it trains as it runs."""

    def __init__(self, tasks: Sequence[str]) -> None:
        super().__init__()
        self.tasks = tuple(tasks)

    def forward(self, slot: Slot, base: Base, x: Tensor, streams: Sequence[Stream]) -> Tensor:
        parts = zip(x.unflatten(0, (len(streams), -1)), streams, strict=True)
        return torch.cat([apply(self.effective(slot, base, stream), part, part) for part, stream in parts])

    def version(self, stream: Stream) -> bool:
        return stream.tooth

    @abstractmethod
    def effective(self, slot: Slot, base: Base, stream: Stream) -> Op:
        """The operation."""

    def owners(self) -> Mapping[str, frozenset[str]]:
        return {name: frozenset(self.tasks) for name, _ in self.named_parameters()}


class Prompts(Kept):
    def __init__(self, tasks: Sequence[str], width: int) -> None:
        super().__init__(tasks)
        self.rows = nn.Parameter(torch.empty(len(tasks), width))
        nn.init.trunc_normal_(self.rows, mean=1.0, std=1.0)

    def effective(self, slot: Slot, base: Base, stream: Stream) -> Op:
        return Op("rows", base, {"rows": self.rows})


class Wider(Kept):
    """Between stages."""

    def __init__(self, tasks: Sequence[str], width: int) -> None:
        super().__init__(tasks)
        self.weight = nn.Parameter(torch.empty(2 * width, width))
        nn.init.trunc_normal_(self.weight, std=0.02)

    def effective(self, slot: Slot, base: Base, stream: Stream) -> Op:
        return Op("linear", base, {"weight": self.weight})


class Asked(Kept):
    """Each task has what its own prompt asks for."""

    def version(self, stream: Stream) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        return stream.tasks[0] if stream.tooth else ""

    def effective(self, slot: Slot, base: Base, stream: Stream) -> Op:
        return Op("row", base, {}, {"number": self.tasks.index(stream.tasks[0]) if stream.tooth else None})


class Gate(Kept):
    def __init__(self, tasks: Sequence[str]) -> None:
        super().__init__(tasks)
        self.gate = nn.Parameter(torch.zeros(1))

    def effective(self, slot: Slot, base: Base, stream: Stream) -> Op:
        return Op("scale", base, {"scale": self.gate.sigmoid() if stream.tooth else torch.zeros_like(self.gate)})


class Filtered(Kept):
    """The shared adapter in the last block of a stage: plain in the trunk, with filters in the tasks' features."""

    def __init__(self, slot: Slot, weight: Tensor, tasks: Sequence[str], rank: int, options: Options) -> None:
        super().__init__(tasks)
        self.scale = options.scale
        self.dropout = nn.Dropout(options.dropout)
        self.down, self.up = factors(weight, rank)
        self.generate = nn.Parameter(torch.empty(9 * rank, rank))
        nn.init.kaiming_uniform_(self.generate, a=math.sqrt(5))
        self.generate_bias = nn.Parameter(torch.empty(9 * rank).uniform_(-1, 1) / math.sqrt(rank))
        self.std = nn.Parameter(torch.randn(9 * rank) * math.sqrt(2) / 3)
        self.mean = nn.Parameter(torch.randn(9 * rank))
        if slot.kind == "proj":
            self.norm, self.norm_bias = _norm(weight)

    def forward(self, slot: Slot, base: Base, x: Tensor, streams: Sequence[Stream]) -> Tensor:
        parts = list(x.unflatten(0, (len(streams), -1)))
        ops = [self.effective(slot, base, stream) for stream in streams]
        trunk = next(i for i, stream in enumerate(streams) if not stream.tooth)
        y = dense(slot, ops[trunk], parts[trunk])
        parts = [self.dropout(part) if i == trunk or slot.kind == "proj" else part for i, part in enumerate(parts)]
        return torch.cat([apply(op, y, part) for op, part in zip(ops, parts, strict=True)])

    def effective(self, slot: Slot, base: Base, stream: Stream) -> Op:
        trunk = Stream(self.tasks)
        if not stream.tooth:
            return Op("low_rank_add", base, {"up": self.up, "down": self.down}, {"scale": self.scale}, source=trunk)
        tensors = dict(self.named_parameters())
        return Op("dyn_depthwise", base, tensors, {"scale": self.scale, "prompts": len(self.tasks)}, source=trunk)


class Projection(LowRank):
    """Before the last block, with the norm that is there in the code and read by nobody."""

    def __init__(self, weight: Tensor, tasks: Sequence[str], rank: int, options: Options) -> None:
        super().__init__(weight, [tuple(tasks)], rank=rank, scale=options.scale, dropout=options.dropout)
        self.norm, self.norm_bias = _norm(weight)

    def owners(self) -> Mapping[str, frozenset[str]]:
        (stream,) = self.streams
        return {**super().owners(), **dict.fromkeys(("norm", "norm_bias"), frozenset(stream.tasks))}


def _norm(weight: Tensor) -> tuple[nn.Parameter, nn.Parameter]:
    """Of what enters a layer."""
    return nn.Parameter(torch.ones(weight.shape[1])), nn.Parameter(torch.zeros(weight.shape[1]))


def build(backbone: Backbone, tree: TaskTree, options: Options, tap: Tap) -> Method:
    ranks, tasks = ranks_of(options.rank, backbone), tree.tasks
    places = {
        "prompts": lambda slot: Prompts(tasks, backbone.widths[0]),
        "asked": lambda slot: Asked(tasks),
        "skip": lambda slot: Gate(tasks),
        "merge_prompts": lambda slot: Wider(tasks, backbone.widths[slot.stage]),
    }
    changes: dict[str, Change] = {}
    for slot in backbone.slots:
        rank = ranks[slot.stage]
        if place := places.get(slot.kind):
            changes[slot.name] = place(slot)
        elif adapted(slot, options):
            weight = backbone.tensors(slot)["weight"]
            if slot.last and slot.kind in FILTERED:
                changes[slot.name] = Filtered(slot, weight, tasks, rank, options)
            elif slot.kind == "proj":
                changes[slot.name] = Projection(weight, tasks, rank, options)
            else:
                changes[slot.name] = LowRank(weight, [tasks], rank=rank, scale=options.scale, dropout=options.dropout)
    layout = Layout(tree, teeth="asked", tap=tap)
    return Method(backbone, layout, changes, lambda slot, role: extras(slot, options))


TADFORMER = MethodSpec(
    build=build,
    options=Options,
    tree="shared",
    kind="low rank",
    source="arXiv 2501.04293 and its released code",
    trains="adapters that all tasks share, a prompt a task, what makes filters of the photo at the ends of stages; by "
    "default patch embedding, norms and position tables too",
    folds="adapters but for the ends of stages, where filters of the photo stay; prompts stay in every window",
    windows=True,
    neutral=False,
)
