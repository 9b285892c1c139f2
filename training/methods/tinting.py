"""Model Tinting (arXiv 2412.19098): networks of single tasks become one, and one layer a task makes up for it.

    theta = theta_0 + sum over tasks of lambda_t (theta_t - theta_0)

for every tensor of the backbone, norms and position tables too: theta_0 is where the experts began (`fit --start`),
theta_t the expert of task t (`fit --experts`). Trained are the coefficients, one for each tensor and task from 0.3 on,
and one tinted layer for each task; the rule `tinting` learns them from what the experts say, without labels, and keeps
the coefficients in 0...1. lambda = e_t with the task's own layers is its expert again.

Ours: the tinted layer is the decoder's last one (published: the classifier); decoders are otherwise the experts', with
their batch norms' statistics. An expert may be any checkpoint whose trunk folds into tensors: its task's are taken.
The checkpoint holds theta_0 and all differences, and needs no other file; deployed is one network for all tasks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ptsa_serve.task_tree import TaskTree
from training.backbones.base import Backbone, Tap
from training.errors import ConfigError
from training.methods.base import Base, Change, Method, MethodSpec
from training.network.layout import Layout, Stream
from training.network.slots import Slot, Weights, compute

__all__ = ["TINTING"]


@dataclass(frozen=True)
class Options:
    """start: of the coefficients."""

    start: float = 0.3

    def __post_init__(self) -> None:
        if not 0 <= self.start <= 1:
            raise ConfigError(f"start is {self.start}; allowed are 0 (the backbone) to 1")


class Merged(Change):
    """Differences of all tasks' experts from the backbone, (tasks, ...) for each role, and their coefficients."""

    def __init__(self, base: Base, tasks: Sequence[str], start: float) -> None:
        super().__init__()
        self.tasks = tuple(tasks)
        self.coefficients = nn.ParameterDict({role: nn.Parameter(torch.full((len(tasks),), start)) for role in base})
        for role, tensor in base.items():
            # 0 until there are experts.
            self.register_buffer(role, torch.zeros((len(tasks), *tensor.shape)))

    def forward(self, slot: Slot, base: Base, x: Tensor, streams: Sequence[Stream]) -> Tensor:
        merged = {
            role: tensor + torch.tensordot(self.coefficients[role], self.get_buffer(role), 1)
            for role, tensor in base.items()
        }
        return compute(slot, merged, x)

    def version(self, stream: Stream) -> str:
        return "merged"

    def effective(self, slot: Slot, base: Base, stream: Stream) -> Weights:
        return Weights({role: self._merged(role, tensor) for role, tensor in base.items()})

    def owners(self) -> Mapping[str, frozenset[str]]:
        return {f"coefficients.{role}": frozenset(self.tasks) for role in self.coefficients}

    def adopt(self, task: str, base: Base, expert: Base) -> None:
        for role, tensor in base.items():
            self.get_buffer(role)[self.tasks.index(task)] = (expert[role] - tensor).detach()

    def expert(self, task: str) -> dict[str, Tensor]:
        alone = torch.tensor([float(other == task) for other in self.tasks])
        return {f"coefficients.{role}": alone for role in self.coefficients}

    def _merged(self, role: str, tensor: Tensor) -> Tensor:
        differences, coefficients = self.get_buffer(role).double(), self.coefficients[role].detach().double()
        return (tensor.double() + torch.tensordot(coefficients, differences, 1)).to(tensor.dtype)


def build(backbone: Backbone, tree: TaskTree, options: Options, tap: Tap) -> Method:
    changes = {
        slot.name: Merged(backbone.tensors(slot), tree.tasks, options.start) for slot in backbone.slots if slot.tensors
    }
    return Method(backbone, Layout(tree, tap=tap), changes, tinted="head")


TINTING = MethodSpec(
    build=build,
    options=Options,
    tree="shared",
    kind="partial",
    source="arXiv 2412.19098",
    trains="how much of each task's expert is in every tensor, and the last layer of each decoder",
    folds="wholly: one network for all tasks",
    experts=True,
)
