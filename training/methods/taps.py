"""TAPS (arXiv 2203.16708): for each task and layer a gate decides if the layer is the backbone's or the task's own.

    E_t = W + [s_t >= threshold] D_t        loss of t += penalty * mean over layers of c |s_t|

The step counts forwards and is the identity backwards, so s learns by <dL/dE, D> also where the gate is shut; D learns
where it is open. A shut gate leaves the backbone's own tensor, and tasks are one stream until the first gate that is
open: a tree that is learnt. Published: s starts at 0.15, D at 0, the threshold is 0.1, the penalty sets in after 2 of
30 epochs (with D = 0 nothing else moves s). "Joint" TAPS is `--start` from what `fit --method multi_task` wrote.

Ours: D may be low rank; `weigh: depth`, c = the multiply-adds of this layer and all later ones as a part of all, which
is what opening the first gate there costs (published: `weigh: layers`, c = 1); the penalty is part of the task's loss
and so has its weight; gates sit at the linear layers of blocks, and norms, position tables and merging are the
backbone's. A shut gate's D stays in the checkpoint and is in no graph.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ptsa_serve.task_tree import TaskTree
from training.backbones.base import Backbone, Tap
from training.errors import ConfigError
from training.methods.base import Base, Change, Method, MethodSpec
from training.methods.options import check_ranks, one_of, ranks_of
from training.network.changes import factors
from training.network.layout import Layout, Stream
from training.network.slots import ADAPTED, LowRankProduct, Slot, Weights, compute

__all__ = ["TAPS"]


@dataclass(frozen=True)
class Options:
    """delta: dense, or a product of `rank` (one or one a stage, 0 = no gates there) times `scale`. start, threshold: of
    the gates. penalty, weigh: see above. warmup: the part of a run before the penalty.
    """

    delta: Literal["dense", "low_rank"] = "dense"
    rank: int | list[int] = 16
    scale: float = 4.0
    start: float = 0.15
    threshold: float = 0.1
    penalty: float = 1.0
    weigh: Literal["depth", "layers"] = "depth"
    warmup: float = 2 / 30

    def __post_init__(self) -> None:
        one_of("delta", self.delta, ("dense", "low_rank"))
        one_of("weigh", self.weigh, ("depth", "layers"))
        check_ranks(self.rank)
        if not self.start >= self.threshold > 0:
            raise ConfigError(
                f"start is {self.start}, threshold {self.threshold}; gates begin open: 0 < threshold <= start"
            )
        if not self.penalty >= 0:
            raise ConfigError(f"penalty is {self.penalty}; allowed are 0 (gates stay open) and more")
        if not 0 <= self.warmup < 1:
            raise ConfigError(f"warmup is {self.warmup}; it is a part of the run: allowed are 0 up to, but not, 1")


class _Open(torch.autograd.Function):
    """1 where a gate is open, else 0; backwards the identity."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, threshold: float) -> Tensor:
        return (gate >= threshold).to(gate.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class Gated(Change):
    """A difference and a gate for every task, at one linear layer. rank: 0 = dense."""

    def __init__(self, weight: Tensor, tasks: Sequence[str], rank: int, options: Options) -> None:
        super().__init__()
        self.options = options
        self.gates = nn.ParameterDict({task: nn.Parameter(torch.tensor(options.start)) for task in tasks})
        if rank:
            pairs = {task: factors(weight, rank) for task in tasks}
            self.down = nn.ParameterDict({task: down for task, (down, _) in pairs.items()})
            self.up = nn.ParameterDict({task: up for task, (_, up) in pairs.items()})
        else:
            self.delta = nn.ParameterDict({task: nn.Parameter(torch.zeros_like(weight)) for task in tasks})

    def forward(self, slot: Slot, base: Base, x: Tensor, streams: Sequence[Stream]) -> Tensor:
        parts = zip(x.unflatten(0, (len(streams), -1)), streams, strict=True)
        return torch.cat(
            [compute(slot, {**base, "weight": self._weight(base, stream)}, part) for part, stream in parts]
        )

    def version(self, stream: Stream) -> str | None:
        (task,) = stream.tasks
        gate = self.gates[task]
        # Nobody knows what is open before there are values: as if all were.
        return task if gate.is_meta or gate >= self.options.threshold else None

    def effective(self, slot: Slot, base: Base, stream: Stream) -> Weights:
        task, weight = self.version(stream), base["weight"]
        if task is None:
            return Weights(base)
        if hasattr(self, "delta"):
            return Weights({**base, "weight": (weight.double() + self.delta[task].detach().double()).to(weight.dtype)})
        product = LowRankProduct(weight, self.up[task].detach(), self.down[task].detach(), self.options.scale)
        return Weights({**base, "weight": product.fold()}, product)

    def owners(self) -> Mapping[str, frozenset[str]]:
        return {name: frozenset({name.split(".")[1]}) for name, _ in self.named_parameters()}

    def _weight(self, base: Base, stream: Stream) -> Tensor:
        (task,) = stream.tasks
        opened: Tensor = _Open.apply(self.gates[task], self.options.threshold)  # pyright: ignore
        if hasattr(self, "delta"):
            return base["weight"] + opened * self.delta[task]
        return base["weight"] + opened * (self.options.scale * self.up[task] @ self.down[task])


class GatedMethod(Method):
    """Gates at some slots, and what it costs to open one."""

    def __init__(self, backbone: Backbone, layout: Layout, changes: Mapping[str, Change], options: Options) -> None:
        super().__init__(backbone, layout, changes)
        self._options = options
        # Each stage has a quarter of the tokens of the one before.
        adds = {
            slot.name: backbone.tensors(slot)["weight"].numel() / 4**slot.stage
            for slot in backbone.slots
            if slot.kind in ADAPTED
        }
        left = list(accumulate(reversed(adds.values())))[::-1]
        depth = options.weigh == "depth"
        self.costs = {name: behind / left[0] if depth else 1.0 for name, behind in zip(adds, left, strict=True)}

    def penalties(self, progress: float) -> dict[str, Tensor]:
        if progress < self._options.warmup:
            return {}
        gated = [(self.costs[slot.name], self.change(slot)) for slot in self._backbone[0].slots if self.change(slot)]
        return {
            task: self._options.penalty
            * torch.stack(
                [cost * change.gates[task].abs() for cost, change in gated if isinstance(change, Gated)]
            ).mean()
            for task in self.layout.tree.tasks
        }


def build(backbone: Backbone, tree: TaskTree, options: Options, tap: Tap) -> Method:
    ranks = ranks_of(options.rank, backbone)
    changes: dict[str, Change] = {}
    for slot in backbone.slots:
        rank = ranks[slot.stage] if options.delta == "low_rank" else 0
        if slot.kind in ADAPTED and (rank or options.delta == "dense"):
            changes[slot.name] = Gated(backbone.tensors(slot)["weight"], tree.tasks, rank, options)
    return GatedMethod(backbone, Layout(tree, tap=tap), changes, options)


TAPS = MethodSpec(
    build=build,
    options=Options,
    tree="independent",
    kind="partial",
    source="arXiv 2203.16708",
    trains="a gate and a difference of its own for each task at every linear layer of a block",
    folds="wholly: a network for each task from its first open gate on",
)
