"""The changes that methods are made of: low-rank adapters and copies, one for each group of tasks."""

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptsa_serve.task_tree import Group
from training.methods.base import Base, Change
from training.network.layout import Stream
from training.network.slots import LowRankProduct, Slot, Weights, compute

__all__ = ["Copies", "LowRank", "factors"]


def factors(weight: Tensor, rank: int) -> tuple[nn.Parameter, nn.Parameter]:
    """`down` (rank, in) and `up` (out, rank) for a weight (out, in); their product is 0 at the start.

    Source: MTLoRA (arXiv 2403.20320), as LoRA (arXiv 2106.09685): Kaiming uniform with a = sqrt 5, and zeros.
    """
    outputs, inputs = weight.shape
    down = nn.Parameter(torch.empty(rank, inputs))
    nn.init.kaiming_uniform_(down, a=math.sqrt(5))
    return down, nn.Parameter(torch.zeros(outputs, rank))


class LowRank(Change):
    """Task-grouped LoRA: y_g = (W + scale * up_g down_g) x_g + b for the stream of group g.

    weight: of the frozen layer, (out, in). scale is a factor of its own, not alpha / rank. dropout: on the adapter's
    input. Source: LoRA (arXiv 2106.09685), grouped by PTSA (arXiv 2509.19602).
    """

    def __init__(self, weight: Tensor, groups: Sequence[Group], *, rank: int, scale: float, dropout: float) -> None:
        super().__init__()
        self.groups = tuple(groups)
        self.scale = scale
        self.dropout = nn.Dropout(dropout)
        pairs = [factors(weight, rank) for _ in groups]
        self.down = nn.ParameterList(down for down, _ in pairs)
        self.up = nn.ParameterList(up for _, up in pairs)

    def forward(self, slot: Slot, base: Base, x: Tensor, streams: Sequence[Stream]) -> Tensor:
        y = compute(slot, base, x)
        used = [self.version(stream) for stream in streams]
        # The scale goes on the small factor: exact, and cheaper than on the wide output.
        if len(used) == 1:
            return y + F.linear(F.linear(self.dropout(x), self.down[used[0]]) * self.scale, self.up[used[0]])
        down = torch.stack([self.down[group] for group in used])
        up = torch.stack([self.up[group] for group in used])
        z = self.dropout(x).reshape(len(used), -1, x.shape[-1])
        low = torch.bmm(z, down.transpose(1, 2))
        return y + torch.bmm(low * self.scale, up.transpose(1, 2)).reshape(y.shape)

    def version(self, stream: Stream) -> int:
        return _group_of(stream, self.groups)

    def effective(self, slot: Slot, base: Base, stream: Stream) -> Weights:
        group = self.version(stream)
        up, down = self.up[group].detach(), self.down[group].detach()
        if not up.is_meta and not up.any():
            return Weights(base)
        product = LowRankProduct(base["weight"], up, down, self.scale)
        return Weights({**base, "weight": product.fold()}, product)

    def owners(self) -> Mapping[str, frozenset[str]]:
        return {f"{part}.{i}": frozenset(group) for i, group in enumerate(self.groups) for part in ("down", "up")}

    def extra_repr(self) -> str:
        return f"groups={self.groups}, rank={len(self.down[0])}, scale={self.scale}"


class Copies(Change):
    """Tensors of its own for every group, which start as the backbone's.

    base: the tensors to copy, by role; the other roles stay the backbone's.
    """

    def __init__(self, base: Base, groups: Sequence[Group]) -> None:
        super().__init__()
        self.groups = tuple(groups)
        self.copies = nn.ModuleList(
            nn.ParameterDict({role: nn.Parameter(tensor.detach().clone()) for role, tensor in base.items()})
            for _ in groups
        )

    def forward(self, slot: Slot, base: Base, x: Tensor, streams: Sequence[Stream]) -> Tensor:
        parts = zip(x.unflatten(0, (len(streams), -1)), streams, strict=True)
        return torch.cat([compute(slot, {**base, **self._of(stream)}, part) for part, stream in parts])

    def version(self, stream: Stream) -> int:
        return _group_of(stream, self.groups)

    def effective(self, slot: Slot, base: Base, stream: Stream) -> Weights:
        return Weights({**base, **{role: tensor.detach() for role, tensor in self._of(stream).items()}})

    def owners(self) -> Mapping[str, frozenset[str]]:
        return {f"copies.{i}.{role}": frozenset(group) for i, group in enumerate(self.groups) for role in self.roles}

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


def _group_of(stream: Stream, groups: Sequence[Group]) -> int:
    return next(i for i, group in enumerate(groups) if set(stream.tasks) <= set(group))
