"""Nested partitions of many tasks by average linkage: not the least cost, but a good one at once.

From the last stage to the first, each starts from the groups of the next and merges the two that are on average the
most alike, until it has as many as it should: nested by construction.
"""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from training.allocation.partitions import Partition
from training.allocation.search import TIE

__all__ = ["link"]


def link(similarity: NDArray[np.float64], counts: Sequence[int]) -> list[Partition]:
    """A partition a stage, for similarities (S, T, T) and `counts` groups a stage, never falling."""
    groups: Partition = tuple((task,) for task in range(similarity.shape[1]))
    stages = []
    for matrix, count in zip(similarity[::-1], counts[::-1], strict=True):
        while len(groups) > count:
            groups = _merged(matrix, groups)
        stages.append(groups)
    return stages[::-1]


def _merged(similarity: NDArray[np.float64], groups: Partition) -> Partition:
    """The two most alike become one; of equal pairs, the first."""
    pairs = list(combinations(range(len(groups)), 2))
    alike = np.array([similarity[np.ix_(groups[i], groups[j])].mean() for i, j in pairs])
    i, j = pairs[int((alike >= alike.max() - TIE).argmax())]
    joined = tuple(sorted((*groups[i], *groups[j])))
    return tuple(sorted([joined, *(group for k, group in enumerate(groups) if k not in (i, j))]))
