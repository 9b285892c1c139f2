"""Partitions of T tasks, numbered 0...T - 1, and what it costs to keep the tasks of each group together.

J(P) = sum over groups G of (1 / |G|) * (sum over pairs t < t' in G of 1 - similarity(t, t')): 0 for single tasks.
"""

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from ptsa_serve.task_tree import TaskTree
from training.errors import ConfigError

__all__ = ["Partition", "as_tree", "check", "partition_cost", "partitions", "tree_cost"]

# Groups of ascending numbers, ordered by their first: equal partitions are equal tuples.
Partition = tuple[tuple[int, ...], ...]


@cache
def partitions(tasks: int, groups: int) -> tuple[Partition, ...]:
    """All partitions of `tasks` numbers into `groups` groups, in lexicographic order."""
    return tuple(sorted(_grow(((),) * groups, 0, tasks)))


def _grow(groups: Partition, used: int, missing: int) -> Iterator[Partition]:
    """Ways to place the next number: with one of the `used` groups, or first in the next empty one."""
    if len(groups) - used > missing:
        return  # some group would stay empty
    if not missing:
        yield groups
        return
    number = sum(map(len, groups))
    for i in range(min(used + 1, len(groups))):
        grown = (*groups[:i], (*groups[i], number), *groups[i + 1 :])
        yield from _grow(grown, max(used, i + 1), missing - 1)


def partition_cost(similarity: NDArray[np.float64], partition: Partition) -> float:
    """J of one stage, for its similarities (T, T)."""
    return float(sum(sum(1 - similarity[i, j] for i, j in combinations(group, 2)) / len(group) for group in partition))


def tree_cost(similarity: NDArray[np.float64], tree: TaskTree) -> float:
    """J summed over the stages of `tree`, for similarities (S, T, T) in its order of tasks."""
    number = {task: i for i, task in enumerate(tree.tasks)}
    return sum(
        partition_cost(matrix, tuple(tuple(number[task] for task in group) for group in stage))
        for matrix, stage in zip(similarity, tree.stages, strict=True)
    )


def as_tree(tasks: Sequence[str], stages: Sequence[Partition]) -> TaskTree:
    """The numbers of `stages` replaced by names."""
    return TaskTree(tuple(tasks), tuple(tuple(tuple(tasks[i] for i in group) for group in stage) for stage in stages))


def check(tasks: Sequence[str], similarity: NDArray[np.float64]) -> None:
    """Raise ConfigError unless `similarity` is (S, T, T), symmetric and finite."""
    shape = similarity.shape
    if len(shape) != 3 or not shape[0] or shape[1:] != (len(tasks), len(tasks)):
        raise ConfigError(f"similarities have shape {shape}; {len(tasks)} tasks need (stages, tasks, tasks)")
    if not np.isfinite(similarity).all() or not np.allclose(similarity, similarity.transpose(0, 2, 1), atol=1e-9):
        raise ConfigError("similarities must be finite and the same in both directions; measure them again")
