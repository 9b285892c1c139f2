"""Could the tree have come out otherwise, had other batches been measured?"""

from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from ptsa_serve.task_tree import TaskTree
from training.allocation.partitions import as_tree, tree_cost
from training.allocation.search import MOST_TASKS, search
from training.similarity.record import Measure, Scope, Similarity

__all__ = ["doubt"]

# Half the width of a 95 % interval, in standard errors.
WIDTH = 1.96


def doubt(similarity: Similarity, tree: TaskTree, *, measure: Measure = "unit", scope: Scope = "stage") -> str | None:
    """What to warn of where the best other tree of the same counts may be as good; None where it is not, or unknown.

    As good: the difference in J is within the 95 % intervals of the similarities it is made of, added up. That asks for
    no independence, and for one pair against another it says that their intervals overlap. Above `MOST_TASKS` tasks
    trees come from no search, and nothing is known of others.
    """
    means, errors = similarity.stages(measure, scope), similarity.errors(measure, scope)
    if len(tree.tasks) > MOST_TASKS:
        return None
    chains = (as_tree(tree.tasks, chain) for _, chain in search(means, tree.counts).ascending())
    rival = next((other for other in chains if other != tree), None)
    if rival is None:
        return None
    gap = tree_cost(means, rival) - tree_cost(means, tree)
    swing = WIDTH * float((np.abs(_shares(rival) - _shares(tree)) * errors).sum())
    if gap > swing:
        return None
    return (
        f"the tree is not certain: {rival} costs {gap:.3f} ± {swing:.3f} more, so other batches might prefer it. "
        f"What decides: {'; '.join(_difference(tree, rival, means, errors))}. More batches narrow the intervals"
    )


def _shares(tree: TaskTree) -> NDArray[np.float64]:
    """How much of each pair's distance is in J, (S, T, T): 1 / |G| for a pair i < j of one group."""
    shares = np.zeros((len(tree.stages), len(tree.tasks), len(tree.tasks)))
    for stage, groups in zip(shares, tree.stages, strict=True):
        for group in groups:
            for i, j in combinations(sorted(tree.tasks.index(task) for task in group), 2):
                stage[i, j] = 1 / len(group)
    return shares


def _difference(tree: TaskTree, rival: TaskTree, means: NDArray, errors: NDArray) -> list[str]:
    """For each stage where the two differ: the pairs that only `tree` joins, and those that only `rival` does."""
    ours, theirs = _shares(tree) > 0, _shares(rival) > 0
    texts = []
    for stage, (mean, error) in enumerate(zip(means, errors, strict=True)):
        sides = [
            ", ".join(f"{tree.tasks[i]} and {tree.tasks[j]} ({mean[i, j]:.3f} ± {error[i, j]:.3f})" for i, j in pairs)
            for pairs in (np.argwhere(ours[stage] & ~theirs[stage]), np.argwhere(theirs[stage] & ~ours[stage]))
        ]
        if any(sides):
            texts.append(f"stage {stage + 1} joins {sides[0] or 'nothing'} rather than {sides[1] or 'nothing'}")
    return texts
