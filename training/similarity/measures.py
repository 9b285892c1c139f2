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

import torch
from torch import Tensor

__all__ = ["MEASURES", "Comparison", "Gradients", "compare"]

MEASURES = ("unit", "weighted", "plain_cosine")

# One tuple a parameter: its gradient for each task, None where a task's loss does not depend on it. A list of them is
# a stage; a list of stages is all.
Gradients = Sequence[Sequence[Sequence[Tensor | None]]]

# Numbers at a time, of all tasks together. On a CPU they stay in the cache, and torch keeps to one thread, as below
# its grain of 32768: two that wait for each other after every product are slower, many times on a busy machine.
_CHUNK = {"cpu": (1 << 15) - 1, "cuda": 1 << 24}


@dataclass(frozen=True)
class Comparison:
    """similarity: by measure, (S + 1, T, T), float64, in -1...1: a stage each, then all stages as one vector.

    1 on the diagonal; NaN where a gradient is zero or not finite. squared_norms: (S, T), float64, not finite where the
    gradient is not.
    """

    similarity: dict[str, Tensor]
    squared_norms: Tensor


def compare(gradients: Gradients) -> Comparison:
    """All similarities of all pairs. Sums are float64; what is copied is at most a parameter long."""
    products = _products(gradients)
    products = torch.cat([products, products.sum(0, keepdim=True)])
    norms = products.diagonal(dim1=1, dim2=2).sqrt()
    stages = norms[:-1]
    sums = _sums(gradients, torch.stack([torch.ones_like(stages), stages, norms[-1:].expand_as(stages)]))
    weighted = torch.cat([sums[0], sums[0].sum(0, keepdim=True)])
    unit = torch.cat([sums[1], sums[2].sum(0, keepdim=True)])
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


def _sums(gradients: Gradients, divisors: Tensor) -> Tensor:
    """sum(u v), sum(u²) and sum(v²) of each pair, (D, S, T, T, 3), of gradients divided by `divisors` (D, S, T)."""
    ways, stages, tasks = divisors.shape
    sums = divisors.new_zeros(ways, stages, tasks, tasks, 3)
    for stage, parameters in enumerate(gradients):
        for chunk in _chunks(parameters):
            for way in range(ways):
                rows = chunk / divisors[way, stage, :, None]
                sizes = rows.abs()
                for i in range(tasks - 1):
                    m = sizes[i] + sizes[i + 1 :]
                    m.masked_fill_(m == 0, 1)
                    u, v = rows[i] / m, rows[i + 1 :] / m
                    sums[way, stage, i, i + 1 :] += torch.stack([(u * v).sum(1), (u * u).sum(1), (v * v).sum(1)], 1)
    return sums + sums.transpose(2, 3)


def _cosine(sums: Tensor) -> Tensor:
    return sums[..., 0] / (sums[..., 1].sqrt() * sums[..., 2].sqrt())


def _chunks(stage: Sequence[Sequence[Tensor | None]]) -> Iterator[Tensor]:
    """The gradients of a stage as (T, n) float64, `_CHUNK` numbers at most, one parameter after the other."""
    for gradients in stage:
        flat = [None if g is None else g.reshape(-1) for g in gradients]
        known = next((g for g in flat if g is not None), None)
        if known is None:
            continue
        length = max(1, _CHUNK[known.device.type] // len(flat))
        for start in range(0, known.numel(), length):
            zeros = torch.zeros_like(known[start : start + length])
            yield torch.stack([(zeros if g is None else g[start : start + length]).double() for g in flat])


def _device(gradients: Gradients) -> torch.device | None:
    return next((g.device for stage in gradients for tasks in stage for g in tasks if g is not None), None)
