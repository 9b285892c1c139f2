"""ToRA (MTSAM, ICLR 2025): the updates of all tasks at a layer are one tensor (in, out, task) in Tucker form.

    W_t[o, i] = W[o, i] + scale * sum_pqv core[p, q, v] inputs[i, p] outputs[o, q] task_t[v]

Published, with its code: the equation; core zero, the rest N(0, 1); ranks 32, 32 and 4, scale 0.5, dropout 0.1. Ours:
every linear layer of a block, as MTLoRA (it was published on the encoder of SAM), and what else is trained, as all our
adapters. A task's update has rank R: it folds exactly, and keeps two factors. Counts at one layer:
R (in + out) + R² R_t + T R_t.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ptsa_serve.task_tree import Group, TaskTree
from training.backbones.base import Backbone, Tap
from training.methods.base import Method, MethodSpec
from training.methods.grouped import grouped_by
from training.methods.options import LowRankOptions, one_of
from training.network.changes import Product
from training.network.layout import Stream

__all__ = ["TORA"]


@dataclass(frozen=True)
class Options(LowRankOptions):
    """rank: along inputs and outputs. task_rank: along tasks."""

    rank: int | list[int] = 32
    scale: float = 0.5
    dropout: float = 0.1
    task_rank: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("task_rank", self.task_rank, tuple(range(1, 1025)))


class Tucker(Product):
    """See above; a group of tasks is what the paper calls a task."""

    def __init__(self, options: Options, weight: Tensor, groups: Sequence[Group], rank: int) -> None:
        super().__init__([Stream(group) for group in groups], scale=options.scale, dropout=options.dropout)
        outputs, inputs = weight.shape
        self.core = nn.Parameter(torch.zeros(rank, rank, options.task_rank))
        self.inputs = nn.Parameter(torch.randn(inputs, rank))
        self.outputs = nn.Parameter(torch.randn(outputs, rank))
        self.tasks = nn.ParameterList(torch.randn(options.task_rank) for _ in groups)

    def pair(self, number: int) -> tuple[Tensor, Tensor]:
        return (self.inputs @ (self.core @ self.tasks[number])).T, self.outputs

    def owners(self) -> Mapping[str, frozenset[str]]:
        own = {f"tasks.{i}": frozenset(stream.tasks) for i, stream in enumerate(self.streams)}
        everyone = frozenset(task for stream in self.streams for task in stream.tasks)
        return own | dict.fromkeys(("core", "inputs", "outputs"), everyone)


def build(backbone: Backbone, tree: TaskTree, options: Options, tap: Tap) -> Method:
    return grouped_by(partial(Tucker, options), backbone, tree, options, tap)


TORA = MethodSpec(
    build=build,
    options=Options,
    tree="independent",
    kind="low rank",
    source="MTSAM, ICLR 2025, and its released code",
    trains="one tensor a layer, whose factors all tasks share, and a vector for each task; by default patch embedding, "
    "merging, norms and position tables too",
    folds="wholly: a network for each task",
)
