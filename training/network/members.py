"""Changes with a member for each corner of a simplex: what a slot does is interpolated between them."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.methods.base import Base, Change
from training.network.changes import factors
from training.network.layout import Stream
from training.network.simplex import Simplex
from training.network.slots import LowRankProduct, Slot, Weights, compute

__all__ = ["CopyMembers", "LowRankMembers"]


class _Members(Change):
    """One set of tensors for all tasks, which all members have a part in."""

    def __init__(self, simplex: Simplex) -> None:
        super().__init__()
        self.simplex = simplex

    def version(self, stream: Stream) -> int:
        return 0

    def owners(self) -> Mapping[str, frozenset[str]]:
        return {name: frozenset(self.simplex.tasks) for name, _ in self.named_parameters()}


class LowRankMembers(_Members):
    """y = (W + scale * sum_i a_i up_i down_i) x + b: products are interpolated, not factors.

    weight: (out, in) of the frozen layer. dropout: on the adapters' input.
    """

    def __init__(self, weight: Tensor, simplex: Simplex, *, rank: int, scale: float, dropout: float) -> None:
        super().__init__(simplex)
        self.scale = scale
        self.dropout = nn.Dropout(dropout)
        pairs = [factors(weight, rank) for _ in simplex.tasks]
        self.down = nn.ParameterList(down for down, _ in pairs)
        self.up = nn.ParameterList(up for _, up in pairs)

    def forward(self, slot: Slot, base: Base, x: Tensor, streams: Sequence[Stream]) -> Tensor:
        up, down = self._factors()
        return compute(slot, base, x) + F.linear(F.linear(self.dropout(x), down) * self.scale, up)

    def effective(self, slot: Slot, base: Base, stream: Stream) -> Weights:
        up, down = (factor.detach() for factor in self._factors())
        if not up.is_meta and not up.any():
            return Weights(base)
        product = LowRankProduct(base["weight"], up, down, self.scale)
        return Weights({**base, "weight": product.fold()}, product)

    def _factors(self) -> tuple[Tensor, Tensor]:
        """Of the members side by side; at a corner its member's own, to the last bit."""
        parts = self.simplex.parts
        return torch.cat([part * self.up[i] for i, part in parts], 1), torch.cat([self.down[i] for i, _ in parts])


class CopyMembers(_Members):
    """The slot with sum_i a_i * the tensors of member i, which all start as the backbone's `base`."""

    def __init__(self, base: Base, simplex: Simplex) -> None:
        super().__init__(simplex)
        self.members = nn.ModuleList(
            nn.ParameterDict({role: nn.Parameter(tensor.detach().clone()) for role, tensor in base.items()})
            for _ in simplex.tasks
        )

    def forward(self, slot: Slot, base: Base, x: Tensor, streams: Sequence[Stream]) -> Tensor:
        return compute(slot, {role: _mean(self._of(role)) for role in base}, x)

    def effective(self, slot: Slot, base: Base, stream: Stream) -> Weights:
        return Weights({role: self._folded(role) for role in base})

    def start(self, base: Base) -> None:
        with torch.no_grad():
            for member in self.members:
                for role, tensor in member.named_parameters():
                    tensor.copy_(base[role])

    def _of(self, role: str) -> list[tuple[Tensor, float]]:
        return [(self.members[i].get_parameter(role), part) for i, part in self.simplex.parts]

    def _folded(self, role: str) -> Tensor:
        """Summed in float64 and rounded once."""
        found = [(tensor.detach(), part) for tensor, part in self._of(role)]
        return _mean([(tensor.double(), part) for tensor, part in found]).to(found[0][0].dtype)


def _mean(parts: Sequence[tuple[Tensor, float]]) -> Tensor:
    total = parts[0][1] * parts[0][0]
    for tensor, part in parts[1:]:
        total = total + part * tensor
    return total
