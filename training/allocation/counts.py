"""The best tree with given numbers of groups a stage."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ptsa_serve.task_tree import TaskTree
from training.allocation.linkage import link
from training.allocation.partitions import as_tree, check
from training.allocation.search import MOST_TASKS, search
from training.errors import ConfigError

__all__ = ["default_counts", "from_counts"]


def default_counts(tasks: int) -> tuple[int, int, int, int]:
    """Groups in each of four stages: all together first, each alone last.

    For four tasks 1-2-2-4: the only counts that give the multiply-adds reported for PTSA (arXiv 2509.19602) on Swin-T.
    The others follow it without evidence.
    """
    half = (tasks + 1) // 2
    return (1, 1, 2, 2) if tasks == 2 else (1, min(2, half), half, tasks)


def from_counts(tasks: Sequence[str], similarity: NDArray[np.float64], counts: Sequence[int] | None = None) -> TaskTree:
    """The tree of least cost J (`partitions`) with `counts` groups a stage, for similarities (S, T, T).

    Exact up to `MOST_TASKS` tasks, by average linkage above. Deterministic: of equal trees the lexicographically
    smallest in the order of `tasks`. Without counts, `default_counts`. Raises ConfigError for counts that fall, do not
    fit tasks or stages, or are missing where the stages are not four.
    """
    check(tasks, similarity)
    counts = _checked(counts, len(tasks), len(similarity))
    stages = search(similarity, counts).best() if len(tasks) <= MOST_TASKS else link(similarity, counts)
    return as_tree(tasks, stages)


def _checked(counts: Sequence[int] | None, tasks: int, stages: int) -> tuple[int, ...]:
    if counts is None and stages == 4:
        return default_counts(tasks)
    found = tuple(counts or ())
    if len(found) != stages or list(found) != sorted(found) or not all(1 <= count <= tasks for count in found):
        raise ConfigError(
            f"{list(found)} groups a stage; needed are {stages} numbers that never fall, from 1 to {tasks}, one a stage"
        )
    return found
