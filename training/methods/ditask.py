"""DiTASK (arXiv 2502.06029): the singular vectors of every weight stay, its singular values are mapped.

    W_t = U diag(f_t(sigma)) V^T,    f_t increasing, with fixed ends

Published, with its code: one map of 64 cells for all tasks at every linear layer of a block, and at the projection and
both layers of the MLP in a stage's last block one of 4 cells for each task, which maps the weight as it was pretrained;
queries, keys and values are three weights that share a map. The paper maps values: f_t(sigma / largest) * largest,
the default. Its code moves them along their index: the i-th is what an interpolation of sigma has at f_t(i); choose
`mapping: index`. Ours: f is no CPAB flow but a monotone rational-quadratic spline on equal cells, through knots whose
heights are a softmax, with derivatives by harmonic means (Gregory and Delbourgo, IMA J. Numer. Anal. 2, 1982; arXiv
1906.04032): as many numbers, cells - 1, the identity where they are 0, and no chain of cells to integrate through.
They start at 0, not at random as in the code. Counts: 48 (N - 1) + 12 T (n - 1) on Swin-T, 3,168 with N = 64, n = 4 and
four tasks; the other 1,599,546 of the published 1.61 M are what is trained in full beside it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ptsa_serve.task_tree import TaskTree
from training.backbones.base import Backbone, Tap
from training.methods.base import Change, Method, MethodSpec
from training.methods.comb import comb
from training.methods.options import ExtraOptions, all_shared, one_of
from training.network.changes import Update
from training.network.layout import Stream
from training.network.slots import Slot

__all__ = ["DITASK"]

PARTS = {"qkv": 3, "kv": 2}  # square weights that one layer holds


@dataclass(frozen=True)
class Options(ExtraOptions):
    """cells, task_cells: of the map that all tasks share, and of each task's. mapping: of singular values, or of
    their index."""

    cells: int = 64
    task_cells: int = 4
    mapping: Literal["value", "index"] = "value"

    def __post_init__(self) -> None:
        super().__post_init__()
        all_shared(self)
        one_of("merge", self.merge, ("train", "frozen"))
        one_of("cells", self.cells, tuple(range(2, 1025)))
        one_of("task_cells", self.task_cells, tuple(range(2, 1025)))
        one_of("mapping", self.mapping, ("value", "index"))


class Spectrum(Update):
    """See above; the first of `streams` is the trunk's."""

    def __init__(self, options: Options, slot: Slot, streams: Sequence[Stream]) -> None:
        super().__init__(streams)
        self.parts = PARTS.get(slot.kind, 1)
        self.mapped = by_value if options.mapping == "value" else by_index
        self.theta = nn.ParameterList(
            torch.zeros((options.task_cells if stream.tooth else options.cells) - 1) for stream in streams
        )
        self._seen: tuple[Tensor, tuple[Any, ...], list[Any]] | None = None

    def update(self, weight: Tensor, number: int) -> Tensor:
        theta = self.theta[number].to(weight.dtype)
        moved = [u * (self.mapped(theta, sigma) - sigma) @ v for u, sigma, v in self._decomposed(weight)]
        return torch.cat(moved)

    def still(self, number: int) -> bool:
        return not self.theta[number].is_meta and not self.theta[number].any()

    def owners(self) -> Mapping[str, frozenset[str]]:
        return {f"theta.{i}": frozenset(stream.tasks) for i, stream in enumerate(self.streams)}

    def _decomposed(self, weight: Tensor) -> list[Any]:
        """U, sigma and V^T of each part, kept until the frozen weight is another: they cost more than a step."""
        state = (weight.data_ptr(), weight._version, weight.dtype) if isinstance(weight, nn.Parameter) else None
        if state and self._seen and self._seen[1] == state:
            return self._seen[2]
        with torch.no_grad():
            parts = [
                tuple(factor.to(weight.dtype) for factor in torch.linalg.svd(part.double(), full_matrices=False))
                for part in weight.chunk(self.parts)
            ]
        if state:
            self._seen = (weight.detach(), state, parts)  # held, so that its address is not given to another
        return parts

    def __getstate__(self) -> dict[str, Any]:
        """Copies decompose for themselves."""
        return {**self.__dict__, "_seen": None}


def by_value(theta: Tensor, sigma: Tensor) -> Tensor:
    """Singular values (r,), mapped as parts of the largest."""
    largest = sigma[0].clamp_min(torch.finfo(sigma.dtype).tiny)
    return largest * spline(theta, sigma / largest)


def by_index(theta: Tensor, sigma: Tensor) -> Tensor:
    """Singular values (r,), interpolated at the mapped places of each, from 0 for the first to 1 for the last."""
    last = len(sigma) - 1
    place = spline(theta, torch.linspace(0, 1, last + 1, dtype=sigma.dtype, device=sigma.device)) * last
    before = place.detach().long().clamp(0, max(last - 1, 0))
    return torch.lerp(sigma[before], sigma[(before + 1).clamp_max(last)], place - before)


def spline(theta: Tensor, x: Tensor) -> Tensor:
    """An increasing map of [0, 1] onto itself at x (n,), by theta (cells - 1,); the identity where theta is 0."""
    cells = len(theta) + 1
    heights = torch.softmax(torch.cat([theta.new_zeros(1), theta]), 0)
    slopes = heights * cells
    inner = 2 * slopes[:-1] * slopes[1:] / (slopes[:-1] + slopes[1:])
    derivatives = torch.cat([slopes[:1], inner, slopes[-1:]])
    knots = torch.cat([theta.new_zeros(1), heights.cumsum(0)])
    cell = (x * cells).long().clamp(0, cells - 1)
    part = x * cells - cell
    slope, mixed = slopes[cell], part * (1 - part)
    left, right = derivatives[cell], derivatives[cell + 1]
    rise = (slope * part.square() + left * mixed) / (slope + (left + right - 2 * slope) * mixed)
    return knots[cell] + heights[cell] * rise


def build(backbone: Backbone, tree: TaskTree, options: Options, tap: Tap) -> Method:
    def make(slot: Slot, weight: Tensor, streams: Sequence[Stream]) -> Change:
        return Spectrum(options, slot, streams)

    return comb(make, backbone, tree, options, tap)


DITASK = MethodSpec(
    build=build,
    options=Options,
    tree="shared",
    kind="dense",
    source="arXiv 2502.06029 and its released code",
    trains="a map of singular values at every linear layer, others a task at the ends of stages; by default patch "
    "embedding, merging, norms and position tables too",
    folds="wholly: the second half of each stage's last block for each task",
)
