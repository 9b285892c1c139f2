"""MTL-LoRA (arXiv 2410.09437): a `down` for all tasks, behind it a matrix of each task's own, and several `up`.

    W_t = W + scale * (sum_i softmax(w_t / tau)_i up_i) Lambda_t down

Published, with its code: the equation; `down` Kaiming uniform, `up` zero, Lambda_t = 1, a full matrix; rank 8, alpha
16, three `up`, tau 0.1. w_t is drawn as `down` is: were it 0, every `up` would have the same gradients for ever. Ours:
every linear layer of a block, as MTLoRA (language models have it at those of the attention); scale alpha / rank = 2
whatever the rank; dropout, and what else is trained, as all our adapters. A task's update has rank r: it folds exactly,
and keeps two factors. Counts at one layer: r (in + n out) + T (r² + n).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ptsa_serve.task_tree import Group, TaskTree
from training.backbones.base import Backbone, Tap
from training.errors import ConfigError
from training.methods.base import Method, MethodSpec
from training.methods.grouped import grouped_by
from training.methods.options import LowRankOptions, one_of
from training.network.changes import Product, factors
from training.network.layout import Stream

__all__ = ["MTL_LORA"]


@dataclass(frozen=True)
class Options(LowRankOptions):
    """ups: how many `up` there are. temperature: tau, of the weights of their mean."""

    rank: int | list[int] = 8
    scale: float = 2.0
    ups: int = 3
    temperature: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("ups", self.ups, tuple(range(2, 65)))
        if not 0.01 <= self.temperature <= 100:
            raise ConfigError(f"temperature is {self.temperature}; allowed are 0.01 to 100")


class Mixed(Product):
    """See above; a group of tasks is what the paper calls a task."""

    def __init__(self, options: Options, weight: Tensor, groups: Sequence[Group], rank: int) -> None:
        super().__init__([Stream(group) for group in groups], scale=options.scale, dropout=options.dropout)
        self.temperature = options.temperature
        self.down, up = factors(weight, rank)
        self.up = nn.ParameterList(torch.zeros_like(up) for _ in range(options.ups))
        bound = 1 / math.sqrt(options.ups)  # Kaiming uniform with a = sqrt 5
        self.mixing = nn.ParameterList(torch.empty(options.ups).uniform_(-bound, bound) for _ in groups)
        self.middle = nn.ParameterList(torch.eye(rank) for _ in groups)

    def pair(self, number: int) -> tuple[Tensor, Tensor]:
        shares = torch.softmax(self.mixing[number] / self.temperature, 0)
        up = sum(share * up for share, up in zip(shares, self.up, strict=True))
        assert isinstance(up, Tensor)
        return self.middle[number] @ self.down, up

    def owners(self) -> Mapping[str, frozenset[str]]:
        own = {
            f"{part}.{i}": frozenset(stream.tasks)
            for i, stream in enumerate(self.streams)
            for part in ("mixing", "middle")
        }
        shared = ["down", *(f"up.{i}" for i in range(len(self.up)))]
        return own | dict.fromkeys(shared, frozenset(task for stream in self.streams for task in stream.tasks))


def build(backbone: Backbone, tree: TaskTree, options: Options, tap: Tap) -> Method:
    return grouped_by(partial(Mixed, options), backbone, tree, options, tap)


MTL_LORA = MethodSpec(
    build=build,
    options=Options,
    tree="independent",
    kind="low rank",
    source="arXiv 2410.09437 and its released code",
    trains="adapters that all tasks share, in each a small matrix and weights for each task; by default patch "
    "embedding, merging, norms and position tables too",
    folds="wholly: a network for each task",
)
