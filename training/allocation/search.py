"""The nested partitions of least cost, exactly: a dynamic programme from the last stage to the first.

    best[S](P) = J_S(P);  best[s](P) = J_s(P) + min over Q in stage s + 1 that refine P of best[s + 1](Q)

PTSA (arXiv 2509.19602) leaves its rule open; this one is the exact minimum, as eight tasks have 4140 partitions.
Costs within `TIE` are equal; of equal chains the lexicographically smallest is the answer.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from heapq import heapify, heappop, heappush
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from training.allocation.partitions import Partition, partition_cost, partitions

__all__ = ["MOST_TASKS", "TIE", "Search", "search"]

# With nine, the table of which partition refines which would take hundreds of megabytes.
MOST_TASKS = 8

TIE = 1e-9


@dataclass(frozen=True, eq=False)
class Search:
    """The table of the programme: for each stage its partitions in order, the cost of each, and the cost from there on.

    refines[s][p, q]: whether q of stage s + 1 refines p of stage s.
    """

    stages: tuple[tuple[Partition, ...], ...]
    costs: tuple[NDArray[np.float64], ...]
    onwards: tuple[NDArray[np.float64], ...]
    refines: tuple[NDArray[np.bool_], ...]

    @property
    def least(self) -> float:
        """The cost of the best chain."""
        return float(self.onwards[0].min())

    def best(self) -> list[Partition]:
        """The best chain, a partition a stage."""
        chain: list[int] = []
        for onwards in self.onwards:
            fits = self._allowed(chain) & (self._spent(chain) + onwards <= self.least + TIE)
            chain.append(int(fits.argmax()))
        return self._named(chain)

    def ascending(self) -> Iterator[tuple[float, list[Partition]]]:
        """Every chain with its cost: `best`, then the others from cheap to dear."""
        best = self.best()
        yield self.least, best
        # What a chain costs at least is known exactly, so none is completed before its turn.
        heap: list[tuple[float, tuple[int, ...]]] = [(float(cost), (i,)) for i, cost in enumerate(self.onwards[0])]
        heapify(heap)
        while heap:
            cost, chain = heappop(heap)
            if len(chain) < len(self.stages):
                totals = self._spent(chain) + self.onwards[len(chain)]
                for i in self._allowed(chain).nonzero()[0].tolist():
                    heappush(heap, (float(totals[i]), (*chain, i)))
            elif (named := self._named(chain)) != best:
                yield cost, named

    def _allowed(self, chain: Sequence[int]) -> NDArray[np.bool_]:
        """Which partitions may follow `chain`."""
        if not chain:
            return np.ones(len(self.stages[0]), np.bool_)
        return self.refines[len(chain) - 1][chain[-1]]

    def _spent(self, chain: Sequence[int]) -> float:
        return float(sum(costs[i] for costs, i in zip(self.costs, chain, strict=False)))

    def _named(self, chain: Sequence[int]) -> list[Partition]:
        return [stage[i] for stage, i in zip(self.stages, chain, strict=True)]


def search(similarity: NDArray[np.float64], counts: Sequence[int]) -> Search:
    """The programme for similarities (S, T, T), T at most `MOST_TASKS`, and `counts` groups a stage, never falling."""
    tasks = similarity.shape[1]
    stages = tuple(partitions(tasks, groups) for groups in counts)
    costs = tuple(
        np.array([partition_cost(matrix, partition) for partition in stage])
        for matrix, stage in zip(similarity, stages, strict=True)
    )
    links = tuple(_refines(tasks, *pair) for pair in pairwise(counts))
    onwards = [costs[-1]]
    for cost, link in zip(costs[-2::-1], links[::-1], strict=True):
        onwards.insert(0, cost + np.where(link, onwards[0], np.inf).min(1))
    return Search(stages, costs, tuple(onwards), links)


@cache
def _refines(tasks: int, wide: int, narrow: int) -> NDArray[np.bool_]:
    """Which partition into `narrow` groups, in order, refines which into `wide`: each group lies inside one."""
    outer, inner = _pairs(tasks, wide), _pairs(tasks, narrow)
    return (inner[None, :] & ~outer[:, None]) == 0


def _pairs(tasks: int, groups: int) -> NDArray[np.int64]:
    """For each partition the pairs it keeps together, a bit each."""
    return np.array(
        [sum(1 << (i * tasks + j) for g in p for i in g for j in g if i < j) for p in partitions(tasks, groups)],
        np.int64,
    )
