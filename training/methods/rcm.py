"""RCM (arXiv 2007.12540): a frozen bank of filters, and for each task a modulator of its responses.

    y_t = M_t W_s x + b        W_s = U' W, M_t = U at the start

U (out, out) are the principal axes of the layer's responses W x to training photos ("response initialisation"). With
`normalised`, M_t = g V / |V| row by row, and g and V are learnt ("normalised feature transformation"). Nothing that
two tasks share is trained: a task that is added later leaves all others as they are, bit for bit (`fit --keep`).

On a linear layer a modulator is as large as the layer (for 3x3 convolutions, as published, a ninth): 27 C² a block
where the block has 12 C². So, ours: by default k axes instead of all, with what lies beside them kept,

    E_t = M_t U_k' W + (W - U_k U_k' W) = W + (M_t - U_k) U_k' W

which is exact at the start, needs no shift of means, and is RCM itself for k = out (`full`); and by default only at the
layers that end a branch of a block (proj, fc2). What is stored is M_t - U_k. Biases are not modulated (convolutions
before a batch norm have none), and norms are the backbone's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ptsa_serve.task_tree import TaskTree
from training.backbones.base import Backbone, Tap
from training.errors import ConfigError
from training.methods.base import Base, Change, Method, MethodSpec
from training.methods.options import check_ranks, one_of, ranks_of
from training.network.layout import Layout, Stream
from training.network.slots import ADAPTED, LowRankProduct, Slot, Weights, compute

__all__ = ["RCM"]

SMALLEST = 1e-6  # norm of a row; only of a channel that never answers


@dataclass(frozen=True)
class Options:
    """full: all axes; else the `rank` first ones (one or one a stage, 0 = no modulators there). layers: those that end
    a branch, or all of a block. normalised: see above.
    """

    full: bool = False
    rank: int | list[int] = 64
    layers: Literal["ends", "all"] = "ends"
    normalised: bool = True

    def __post_init__(self) -> None:
        check_ranks(self.rank)
        one_of("layers", self.layers, ("ends", "all"))
        if not self.full and not any(self.rank if isinstance(self.rank, list) else [self.rank]):
            raise ConfigError("rank is 0 everywhere; allowed are ranks of which one is more, or full: true")


class Modulated(Change):
    """A modulator for every task, over the `axes` first principal axes of a layer's responses."""

    responses = True
    basis: Tensor

    def __init__(self, weight: Tensor, tasks: Sequence[str], axes: int, *, normalised: bool) -> None:
        super().__init__()
        outputs = len(weight)
        self.register_buffer("basis", torch.eye(outputs, min(axes, outputs)))  # until there were photos
        self.modulators = nn.ParameterDict({task: nn.Parameter(torch.zeros_like(self.basis)) for task in tasks})
        self.gains = nn.ParameterDict({task: nn.Parameter(torch.zeros(outputs)) for task in tasks if normalised})

    def meet(self, covariance: Tensor) -> None:
        self.basis.copy_(principal_axes(covariance, self.basis.shape[1]))

    def forward(self, slot: Slot, base: Base, x: Tensor, streams: Sequence[Stream]) -> Tensor:
        y = compute(slot, base, x)
        bias = base.get("bias")
        z = (y if bias is None else y - bias) @ self.basis
        up = torch.stack([self._difference(stream) for stream in streams])
        return y + torch.bmm(z.reshape(len(streams), -1, z.shape[-1]), up.transpose(1, 2)).reshape(y.shape)

    def version(self, stream: Stream) -> str:
        return stream.tasks[0]

    def effective(self, slot: Slot, base: Base, stream: Stream) -> Weights:
        up, weight = self._difference(stream).detach(), base["weight"]
        if not up.is_meta and not up.any():
            return Weights(base)
        down = self.basis.double().T @ weight.double()
        if len(down) == len(weight):  # no low rank
            return Weights({**base, "weight": (weight.double() + up.double() @ down).to(weight.dtype)})
        product = LowRankProduct(weight, up, down.to(weight.dtype), 1.0)
        return Weights({**base, "weight": product.fold()}, product)

    def owners(self) -> Mapping[str, frozenset[str]]:
        return {name: frozenset({name.split(".")[1]}) for name, _ in self.named_parameters()}

    def _difference(self, stream: Stream) -> Tensor:
        """M_t - U_k, (out, k)."""
        (task,) = stream.tasks
        own = self.modulators[task]
        if not self.gains:
            return own
        was, now = (rows.norm(dim=1).clamp_min(SMALLEST) for rows in (self.basis, self.basis + own))
        scale = ((was + self.gains[task]) / now)[:, None]  # exactly 1 at the start
        return (scale - 1) * self.basis + scale * own


def principal_axes(covariance: Tensor, count: int) -> Tensor:
    """The `count` leading eigenvectors of a symmetric matrix (n, n), as columns; the largest entry of each is positive.

    In float64; equal on every machine but where two eigenvalues are equal.
    """
    _, vectors = torch.linalg.eigh(covariance.double())
    axes = vectors.flip(1)[:, :count]
    largest = axes.gather(0, axes.abs().argmax(0, keepdim=True))
    return axes * largest.sign()


def build(backbone: Backbone, tree: TaskTree, options: Options, tap: Tap) -> Method:
    ranks = ranks_of(options.rank, backbone)
    where = ADAPTED if options.layers == "all" else {"proj", "fc2"}
    changes: dict[str, Change] = {}
    for slot in backbone.slots:
        base = backbone.tensors(slot)
        axes = len(base["weight"]) if options.full and slot.kind in where else ranks[slot.stage]
        if slot.kind in where and axes:
            changes[slot.name] = Modulated(base["weight"], tree.tasks, axes, normalised=options.normalised)
    return Method(backbone, Layout(tree, tap=tap), changes)


RCM = MethodSpec(
    build=build,
    options=Options,
    tree="independent",
    kind="low rank",
    source="arXiv 2007.12540",
    trains="for each task modulators of what layers answer, over principal axes that training photos gave",
    folds="wholly: a network for each task from the first modulator on",
)
