"""The best tree that costs no more than it may, in parameters, multiply-adds or milliseconds.

More groups always fit the tasks better, so a tree is chosen by what may be spent on it. Candidates are all trees whose
first stage is one group, taken from the lowest J (`partitions`) on until one is within every limit.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from heapq import merge
from itertools import combinations_with_replacement

import numpy as np
from numpy.typing import NDArray

from ptsa_serve.task_tree import TaskTree
from training.allocation.linkage import link
from training.allocation.partitions import as_tree, check, tree_cost
from training.allocation.search import MOST_TASKS, TIE, search
from training.errors import ConfigError

__all__ = ["Budget", "Choice", "from_budget"]


@dataclass(frozen=True)
class Budget:
    """No tree may cost more than `limit`.

    by_counts: trees with as many groups a stage cost the same, as they do in parameters and multiply-adds, and in time
    on an engine: their graphs are the same but for who is wired to whom. `cost` is then asked for one of them.
    """

    name: str
    limit: float
    cost: Callable[[TaskTree], float]
    by_counts: bool = True


@dataclass(frozen=True)
class Choice:
    """The tree, its J, and what it costs by name of the budget."""

    tree: TaskTree
    objective: float
    costs: dict[str, float]


def from_budget(tasks: Sequence[str], similarity: NDArray[np.float64], budgets: Sequence[Budget]) -> Choice:
    """The tree of least J within all `budgets`; of equal ones the cheapest by the first. `similarity` is (S, T, T).

    A cost is asked for at most once a tree, or once for all of the same counts, and only where every budget before
    holds: put the dearest to measure last. Exact up to `MOST_TASKS` tasks; above, each counts have one tree, that of
    `from_counts`. Raises ConfigError if nothing fits, with what the smallest tree costs.
    """
    check(tasks, similarity)
    known: dict[tuple[str, object], float] = {}
    closed: set[tuple[int, ...]] = set()  # counts of which no further tree matters
    found: list[Choice] = []
    vectors = [(1, *rest) for rest in combinations_with_replacement(range(1, len(tasks) + 1), len(similarity) - 1)]
    for objective, tree in merge(
        *(_trees(tasks, similarity, counts, closed) for counts in vectors), key=lambda candidate: candidate[0]
    ):
        if found and objective > found[0].objective + TIE:
            break
        refusal = next((budget for budget in budgets if not _ask(budget, tree, known) <= budget.limit), None)
        if refusal is None:
            found.append(Choice(tree, objective, {budget.name: _ask(budget, tree, known) for budget in budgets}))
        if all(budget.by_counts for budget in ([refusal] if refusal else budgets)):
            closed.add(tree.counts)
    if not found:
        raise _nothing(TaskTree.shared(tasks, len(similarity)), budgets, known)
    return min(found, key=lambda choice: (list(choice.costs.values()), _order(choice.tree)))


def _trees(
    tasks: Sequence[str], similarity: NDArray[np.float64], counts: tuple[int, ...], closed: set[tuple[int, ...]]
) -> Iterator[tuple[float, TaskTree]]:
    """Trees of `counts` with their J, from the lowest on, until the counts are `closed`."""
    if len(tasks) > MOST_TASKS:
        tree = as_tree(tasks, link(similarity, counts))
        yield tree_cost(similarity, tree), tree
        return
    for objective, stages in search(similarity, counts).ascending():
        if counts in closed:
            return
        yield objective, as_tree(tasks, stages)


def _ask(budget: Budget, tree: TaskTree, known: dict[tuple[str, object], float]) -> float:
    key = (budget.name, tree.counts if budget.by_counts else tree)
    if key not in known:
        known[key] = budget.cost(tree)
    return known[key]


def _order(tree: TaskTree) -> list[list[list[int]]]:
    return [[[tree.tasks.index(task) for task in group] for group in stage] for stage in tree.stages]


def _nothing(tree: TaskTree, budgets: Sequence[Budget], known: dict[tuple[str, object], float]) -> ConfigError:
    costs = [(budget, _ask(budget, tree, known)) for budget in budgets]
    over = [f"{cost:,.10g} {b.name}, allowed are {b.limit:,.10g}" for b, cost in costs if not cost <= b.limit]
    return ConfigError(
        f"no tree is within the budget: one group at every stage, the smallest, costs {'; '.join(over)}; allow more"
    )
