"""The changes that methods are made of: low-rank adapters, copies and updates of a weight, for groups of tasks."""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptsa_serve.task_tree import Group
from training.methods.base import Base, Change
from training.network.layout import Stream
from training.network.slots import LowRankProduct, Slot, Weights, compute

__all__ = ["Copies", "LowRank", "Product", "Update", "factors", "full_precision", "number_of"]


def factors(weight: Tensor, rank: int) -> tuple[nn.Parameter, nn.Parameter]:
    """`down` (rank, in) and `up` (out, rank) for a weight (out, in); their product is 0 at the start.

    Source: MTLoRA (arXiv 2403.20320), as LoRA (arXiv 2106.09685): Kaiming uniform with a = sqrt 5, and zeros.
    """
    outputs, inputs = weight.shape
    down = nn.Parameter(torch.empty(rank, inputs))
    nn.init.kaiming_uniform_(down, a=math.sqrt(5))
    return down, nn.Parameter(torch.zeros(outputs, rank))


class Product(Change):
    """y = (W + scale * up down) x + b for each stream, where `pair` says what `up` and `down` are.

    streams: those that have a pair, by number. dropout: on the input of `down`.
    """

    def __init__(self, streams: Sequence[Stream], *, scale: float, dropout: float) -> None:
        super().__init__()
        self.streams = tuple(streams)
        self.scale = scale
        self.dropout = nn.Dropout(dropout)

    @abstractmethod
    def pair(self, number: int) -> tuple[Tensor, Tensor]:
        """`down` (r, in) and `up` (out, r)."""

    def forward(self, slot: Slot, base: Base, x: Tensor, streams: Sequence[Stream]) -> Tensor:
        y = compute(slot, base, x)
        pairs = [self.pair(self.version(stream)) for stream in streams]
        # The scale goes on the small factor: exact, and cheaper than on the wide output.
        if len(pairs) == 1:
            down, up = pairs[0]
            return y + F.linear(F.linear(self.dropout(x), down) * self.scale, up)
        down, up = (torch.stack(parts) for parts in zip(*pairs, strict=True))
        z = self.dropout(x).reshape(len(pairs), -1, x.shape[-1])
        low = torch.bmm(z, down.transpose(1, 2))
        return y + torch.bmm(low * self.scale, up.transpose(1, 2)).reshape(y.shape)

    def version(self, stream: Stream) -> int:
        return number_of(stream, self.streams)

    def effective(self, slot: Slot, base: Base, stream: Stream) -> Weights:
        down, up = (factor.detach() for factor in self.pair(self.version(stream)))
        if not up.is_meta and not (up.any() and down.any()):
            return Weights(base)
        product = LowRankProduct(base["weight"], up, down, self.scale)
        return Weights({**base, "weight": product.fold()}, product)


class LowRank(Product):
    """Task-grouped LoRA: y_g = (W + scale * up_g down_g) x_g + b for the stream of group g.

    weight: of the frozen layer, (out, in). groups: of tasks, or streams where some are teeth. scale is a factor of its
    own, not alpha / rank. dropout: on the adapter's input. Source: LoRA (arXiv 2106.09685), grouped by PTSA (arXiv
    2509.19602).
    """

    def __init__(
        self, weight: Tensor, groups: Sequence[Group | Stream], *, rank: int, scale: float, dropout: float
    ) -> None:
        super().__init__(_streams(groups), scale=scale, dropout=dropout)
        pairs = [factors(weight, rank) for _ in groups]
        self.down = nn.ParameterList(down for down, _ in pairs)
        self.up = nn.ParameterList(up for _, up in pairs)

    def pair(self, number: int) -> tuple[Tensor, Tensor]:
        return self.down[number], self.up[number]

    def owners(self) -> Mapping[str, frozenset[str]]:
        return {
            f"{part}.{i}": frozenset(stream.tasks) for i, stream in enumerate(self.streams) for part in ("down", "up")
        }

    def extra_repr(self) -> str:
        return f"streams={self.streams}, rank={len(self.down[0])}, scale={self.scale}"


class Update(Change):
    """y = (W + update) x + b for each stream, where the update is made from what is learnt and from W.

    streams: those that have an update, by number.
    """

    def __init__(self, streams: Sequence[Stream]) -> None:
        super().__init__()
        self.streams = tuple(streams)

    @abstractmethod
    def update(self, weight: Tensor, number: int) -> Tensor:
        """(out, in), computed in the type of `weight`, (out, in)."""

    @abstractmethod
    def still(self, number: int) -> bool:
        """Whether the update is nothing but zeros, as at the start; tensors without values may say no."""

    def forward(self, slot: Slot, base: Base, x: Tensor, streams: Sequence[Stream]) -> Tensor:
        parts = []
        for part, stream in zip(x.unflatten(0, (len(streams), -1)), streams, strict=True):
            # Made in full precision, as it will be folded; only its product with x is in half.
            with full_precision(x):
                weight = base["weight"] + self.update(base["weight"], self.version(stream))
            parts.append(compute(slot, {**base, "weight": weight}, part))
        return torch.cat(parts)

    def version(self, stream: Stream) -> int:
        return number_of(stream, self.streams)

    def effective(self, slot: Slot, base: Base, stream: Stream) -> Weights:
        number, weight = self.version(stream), base["weight"]
        if self.still(number):
            return Weights(base)
        with torch.no_grad():
            wide = weight.detach().double()
            return Weights({**base, "weight": (wide + self.update(wide, number)).to(weight.dtype)})


class Copies(Change):
    """Tensors of its own for every group, which start as the backbone's.

    base: the tensors to copy, by role; the other roles stay the backbone's.
    """

    def __init__(self, base: Base, groups: Sequence[Group]) -> None:
        super().__init__()
        self.streams = _streams(groups)
        self.copies = nn.ModuleList(
            nn.ParameterDict({role: nn.Parameter(tensor.detach().clone()) for role, tensor in base.items()})
            for _ in groups
        )

    def forward(self, slot: Slot, base: Base, x: Tensor, streams: Sequence[Stream]) -> Tensor:
        parts = zip(x.unflatten(0, (len(streams), -1)), streams, strict=True)
        return torch.cat([compute(slot, {**base, **self._of(stream)}, part) for part, stream in parts])

    def version(self, stream: Stream) -> int:
        return number_of(stream, self.streams)

    def effective(self, slot: Slot, base: Base, stream: Stream) -> Weights:
        return Weights({**base, **{role: tensor.detach() for role, tensor in self._of(stream).items()}})

    def owners(self) -> Mapping[str, frozenset[str]]:
        return {
            f"copies.{i}.{role}": frozenset(stream.tasks)
            for i, stream in enumerate(self.streams)
            for role in self.roles
        }

    @property
    def roles(self) -> list[str]:
        """Of the tensors that are copied."""
        return [name for name, _ in self.copies[0].named_parameters()]

    def _of(self, stream: Stream) -> dict[str, Tensor]:
        return dict(self.copies[self.version(stream)].named_parameters())

    def start(self, base: Base) -> None:
        with torch.no_grad():
            for copy in self.copies:
                for role, tensor in copy.named_parameters():
                    tensor.copy_(base[role])


def full_precision(x: Tensor) -> AbstractContextManager[object]:
    """In which nothing on the device of `x` is computed in half precision, whatever the rest is in."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


def number_of(stream: Stream, streams: Sequence[Stream]) -> int:
    """Index of the one among `streams` whose tensors `stream` has: its own, or that of the group it belongs to."""
    fitting = [i for i, other in enumerate(streams) if set(stream.tasks) <= set(other.tasks)]
    return max(fitting, key=lambda i: streams[i].tooth == stream.tooth)


def _streams(groups: Sequence[Group | Stream]) -> tuple[Stream, ...]:
    return tuple(group if isinstance(group, Stream) else Stream(group) for group in groups)
