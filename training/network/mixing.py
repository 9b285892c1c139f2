"""How far apart the groups of a change have come, and how they are brought together: whatever they are made of.

The change of a low-rank adapter is its product, scale * up @ down, of which many factors are the same. So products are
compared and mixed, never factors; none of them is made in full.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from training.methods.base import Base, Change
from training.network.changes import Copies, LowRank

__all__ = ["begin_together", "inner_products", "is_apart", "mix"]

Row = tuple[float, ...]  # parts of the groups in a mixture


def is_apart(change: Change | None) -> bool:
    """Whether each of several tasks has tensors of its own here, of a kind that `mix` knows."""
    return (
        isinstance(change, LowRank | Copies)
        and len(change.streams) > 1
        and all(len(stream.tasks) == 1 for stream in change.streams)
    )


@torch.no_grad()
def begin_together(change: Change) -> None:
    """Let groups that have learnt nothing start from the same factors.

    Their products are 0 whatever `down` is, but what they learn first lies in the rows of it: tasks that start from
    random rows of their own go different ways even if they want the same.
    """
    if isinstance(change, LowRank) and not any(up.any() for up in change.up):
        for down in change.down:
            down.copy_(change.down[0])


@torch.no_grad()
def inner_products(change: Change, base: Base) -> Tensor:
    """(groups, groups), float64: <dW_g, dW_h> of what the groups changed of the backbone's tensors `base`."""
    if isinstance(change, LowRank):
        up = torch.cat(list(change.up), 1).double()
        down = torch.cat(list(change.down)).double()
        # <B A, D C> = trace(A' B' D C) is a sum over small products alone.
        products = (up.T @ up) * (down @ down.T)
        groups = len(change.streams)
        return change.scale**2 * products.view(groups, products.shape[0] // groups, groups, -1).sum((1, 3))
    assert isinstance(change, Copies)
    total = torch.zeros(())
    for role in change.roles:
        changes = torch.stack([(copy[role] - base[role]).double().flatten() for copy in change.copies])  # pyright: ignore
        total = total + changes @ changes.T
    return total


@torch.no_grad()
def mix(change: Change, parts: Tensor) -> None:
    """Make of each group g the mixture sum_h parts[g, h] * group h; the rows of `parts` add up to 1.

    Of low-rank adapters it is the mixture of products, brought back to their rank by the best approximation (Eckart and
    Young). Groups of equal rows become equal to the last bit; one that is not mixed stays as it is.
    """
    rows: list[list[float]] = parts.tolist()
    mixed = [g for g, row in enumerate(rows) if row != [float(g == h) for h in range(len(rows))]]
    if isinstance(change, LowRank):
        products = _products(change, {tuple(rows[g]) for g in mixed})
        for g in mixed:
            for factor, value in zip((change.up[g], change.down[g]), products[tuple(rows[g])], strict=True):
                factor.copy_(value)
        return
    assert isinstance(change, Copies)
    for role in change.roles:
        before = [copy[role].clone() for copy in change.copies]  # pyright: ignore
        for g in mixed:
            change.copies[g][role].copy_(_sum(rows[g], before))  # pyright: ignore


def _sum(parts: Sequence[float], tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack([part * tensor for part, tensor in zip(parts, tensors, strict=True)]).sum(0)


def _products(change: LowRank, rows: set[Row]) -> dict[Row, tuple[Tensor, Tensor]]:
    """`up` and `down` of mixtures of all groups' products, by the parts of the groups.

    Of all factors of one product those whose `down` has orthogonal rows, of the length that they start with, and lies
    next to the first group's: an optimiser's momentum goes on to mean something, and no `down` comes to be 0.
    """
    left, small_left = torch.linalg.qr(torch.cat(list(change.up), 1).double())
    right, small_right = torch.linalg.qr(torch.cat(list(change.down)).double().T)
    rank, beside = change.down[0].shape[0], change.down[0].double() @ right
    length = math.sqrt(1 / 3)  # Kaiming's for a = sqrt 5: variance 1 / (3 in)
    found = {}
    for row in rows:
        parts = small_left.new_tensor(row).repeat_interleave(rank)
        u, values, v = torch.linalg.svd(small_left * parts @ small_right.T)
        kept = min(rank, len(values))
        lack = rank - kept  # of a layer that is smaller than the rank
        columns, coordinates = F.pad(u[:, :kept] * values[:kept], (0, lack)), F.pad(v[:kept], (0, 0, 0, lack))
        x, _, y = torch.linalg.svd(beside @ coordinates.T)
        turn = x @ y  # the rotation that brings the new `down` nearest (Schoenemann 1966)
        found[row] = left @ (columns @ turn.T) / length, length * (turn @ coordinates) @ right.T
    return found
