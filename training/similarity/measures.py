"""Three similarities of two gradients, for every pair of tasks and every stage at once.

PTSA (arXiv 2509.19602) divides both gradients by |g| + |g'| before their cosine. With norms that would change nothing,
so it is read coordinate by coordinate: with m = |a| + |b|, u = a / m and v = b / m (0 where m is 0),

    S(a, b) = sum(u v) / (sqrt(sum(u²)) sqrt(sum(v²)))

A coordinate of 1e-12 counts in it as much as one of 1; scaling both by one factor changes nothing, scaling one does.

unit          S of a / |a| and b / |b| (L2 norms): S falls towards 0 as norms drift apart, whatever the directions are
weighted      S of the gradients as they are, that is of the weighted losses
plain_cosine  the cosine

Letters: S stages, T tasks.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

__all__ = ["MEASURES", "Comparison", "Gradients", "compare"]

MEASURES = ("unit", "weighted", "plain_cosine")

# One tuple a parameter: its gradient for each task, None where a task's loss does not depend on it. A list of them is
# a stage; a list of stages is all.
Gradients = Sequence[Sequence[Sequence[Tensor | None]]]

# Coordinates at a time: T float64 vectors of this length stay in a core's cache.
_CHUNK = 1 << 15


@dataclass(frozen=True)
class Comparison:
    """similarity: by measure, (S + 1, T, T), float64, in -1...1: a stage each, then all stages as one vector.

    1 on the diagonal; NaN where a gradient is zero or not finite. squared_norms: (S, T), float64, not finite where the
    gradient is not.
    """

    similarity: dict[str, Tensor]
    squared_norms: Tensor


def compare(gradients: Gradients) -> Comparison:
    """All similarities of all pairs. Sums are float64; no copy is longer than a chunk."""
    products = _products(gradients)
    products = torch.cat([products, products.sum(0, keepdim=True)])
    norms = products.diagonal(dim1=1, dim2=2).sqrt()
    of_stages, of_all = norms[:-1], norms[-1:].expand_as(norms[:-1])
    unit = torch.cat([_sums(gradients, of_stages), _sums(gradients, of_all).sum(0, keepdim=True)])
    plain = _sums(gradients, torch.ones_like(of_stages))
    weighted = torch.cat([plain, plain.sum(0, keepdim=True)])
    found = {
        "unit": _cosine(unit),
        "weighted": _cosine(weighted),
        "plain_cosine": products / (norms[:, :, None] * norms[:, None, :]),
    }
    # By definition, and not by division: a rounded 1 would not be one.
    own = torch.where((norms > 0) & norms.isfinite(), 1.0, torch.nan).double()
    for matrices in found.values():
        matrices.clamp_(-1, 1).diagonal(dim1=1, dim2=2).copy_(own)
    return Comparison(found, norms[:-1].square())


def _products(gradients: Gradients) -> Tensor:
    """Inner products (S, T, T)."""
    products = []
    for stage in gradients:
        tasks = len(stage[0])
        total = torch.zeros(tasks, tasks, dtype=torch.float64, device=_device(gradients))
        for rows in _chunks(stage):
            total += rows @ rows.T
        products.append(total)
    return torch.stack(products)


def _sums(gradients: Gradients, norms: Tensor) -> Tensor:
    """sum(u v), sum(u²) and sum(v²) of each pair, (S, T, T, 3), of gradients divided by `norms` (S, T)."""
    tasks = norms.shape[1]
    sums = norms.new_zeros(len(gradients), tasks, tasks, 3)
    for total, stage, divisors in zip(sums, gradients, norms, strict=True):
        for chunk in _chunks(stage):
            rows = chunk / divisors[:, None]
            sizes = rows.abs()
            for i, j in combinations(range(tasks), 2):
                m = sizes[i] + sizes[j]
                m[m == 0] = 1
                u, v = rows[i] / m, rows[j] / m
                total[i, j] += torch.stack([u @ v, u @ u, v @ v])
    return sums + sums.transpose(1, 2)


def _cosine(sums: Tensor) -> Tensor:
    return sums[..., 0] / (sums[..., 1].sqrt() * sums[..., 2].sqrt())


def _chunks(stage: Sequence[Sequence[Tensor | None]]) -> Iterator[Tensor]:
    """The gradients of a stage as (T, at most _CHUNK) float64, one parameter after the other."""
    for gradients in stage:
        flat = [None if g is None else g.reshape(-1) for g in gradients]
        known = next((g for g in flat if g is not None), None)
        for start in range(0, 0 if known is None else known.numel(), _CHUNK):
            assert known is not None
            zeros = torch.zeros_like(known[start : start + _CHUNK])
            yield torch.stack([(zeros if g is None else g[start : start + _CHUNK]).double() for g in flat])


def _device(gradients: Gradients) -> torch.device | None:
    return next((g.device for stage in gradients for tasks in stage for g in tasks if g is not None), None)
