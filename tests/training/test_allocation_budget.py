from itertools import combinations_with_replacement

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ptsa_serve.task_tree import TaskTree
from training.allocation.budget import Budget, from_budget
from training.allocation.counts import from_counts
from training.allocation.partitions import tree_cost
from training.allocation.search import search
from training.errors import ConfigError

NAMES = "abcdefghij"
# Parameters of a group a stage, as in Swin's stages.
PARAMETERS = (1, 2, 12, 8)


def matrices(seed: int, tasks: int, stages: int = 4) -> NDArray[np.float64]:
    values = np.random.default_rng(seed).uniform(-1, 1, (stages, tasks, tasks))
    return (values + values.transpose(0, 2, 1)) / 2


def parameters(tree: TaskTree) -> float:
    return sum(count * cost for count, cost in zip(tree.counts, PARAMETERS, strict=False))


def every_tree(similarity: NDArray[np.float64]) -> list[TaskTree]:
    tasks, stages = similarity.shape[1], len(similarity)
    return [
        TaskTree(
            tuple(NAMES[:tasks]), tuple(tuple(tuple(NAMES[i] for i in group) for group in stage) for stage in chain)
        )
        for rest in combinations_with_replacement(range(1, tasks + 1), stages - 1)
        for _, chain in search(similarity, (1, *rest)).ascending()
    ]


@settings(max_examples=30)
@given(st.integers(2, 5), st.integers(0, 10**6), st.integers(23, 80))
def test_no_tree_within_the_limit_costs_less(tasks: int, seed: int, limit: int) -> None:
    similarity = matrices(seed, tasks, 3 if tasks == 5 else 4)
    budget = Budget("parameters", limit, parameters)
    choice = from_budget(NAMES[:tasks], similarity, [budget])
    trees = [tree for tree in every_tree(similarity) if parameters(tree) <= limit]
    assert choice.tree in trees
    assert choice.objective == pytest.approx(min(tree_cost(similarity, tree) for tree in trees), abs=1e-9)
    assert choice.costs == {"parameters": parameters(choice.tree)}
    assert choice.tree == from_counts(NAMES[:tasks], similarity, choice.tree.counts)


@settings(max_examples=20)
@given(st.integers(0, 10**6))
def test_a_cost_that_tells_trees_of_the_same_counts_apart_is_asked_for_each(seed: int) -> None:
    similarity = matrices(seed, 4, 3)

    def milliseconds(tree: TaskTree) -> float:
        return sum(len(group) for stage in tree.stages for group in stage if "a" in group)

    budgets = [Budget("parameters", 33, parameters), Budget("ms", 8, milliseconds, by_counts=False)]
    choice = from_budget("abcd", similarity, budgets)
    trees = [tree for tree in every_tree(similarity) if parameters(tree) <= 33 and milliseconds(tree) <= 8]
    assert choice.tree in trees
    assert choice.objective == pytest.approx(min(tree_cost(similarity, tree) for tree in trees), abs=1e-9)


def test_without_a_limit_that_binds_tasks_part_after_the_first_stage() -> None:
    similarity = matrices(0, 4)
    for budgets in ([], [Budget("parameters", 1e9, parameters)]):
        assert from_budget("abcd", similarity, budgets).tree.counts == (1, 4, 4, 4)


def test_of_equal_trees_the_cheapest_wins() -> None:
    similarity = np.ones((4, 3, 3))  # nothing is lost by keeping all together
    choice = from_budget("abc", similarity, [Budget("parameters", 1e9, parameters)])
    assert choice.tree == TaskTree.shared("abc")
    # Whichever is cheap: here a tree that is not the first to be looked at.
    choice = from_budget("abc", similarity, [Budget("idle", 1e9, lambda tree: -parameters(tree))])
    assert choice.tree.counts == (1, 3, 3, 3)


def test_a_limit_may_be_reached_but_not_passed() -> None:
    similarity = matrices(1, 4)
    for counts in ((1, 2, 2, 4), (1, 1, 2, 4), (1, 1, 1, 1)):
        spent = parameters(from_counts("abcd", similarity, counts))
        assert parameters(from_budget("abcd", similarity, [Budget("p", spent, parameters)]).tree) <= spent
    with pytest.raises(ConfigError):
        from_budget("abcd", similarity, [Budget("p", 22.999, parameters)])


@pytest.mark.parametrize("tasks", [4, 9])
def test_a_dear_cost_is_asked_once_for_each_counts_and_only_where_cheap_limits_hold(tasks: int) -> None:
    asked: list[TaskTree] = []

    def milliseconds(tree: TaskTree) -> float:
        asked.append(tree)
        return sum(tree.counts)

    budgets = [Budget("parameters", 40, parameters), Budget("ms", 7, milliseconds)]
    choice = from_budget(NAMES[:tasks], matrices(2, tasks), budgets)
    assert choice.costs["ms"] <= 7
    assert len({tree.counts for tree in asked}) == len(asked)
    assert all(parameters(tree) <= 40 for tree in asked)
    # From the best on: nothing worse than the tree that was chosen is measured.
    costs = [tree_cost(matrices(2, tasks), tree) for tree in asked]
    assert costs == sorted(costs)
    assert asked[-1] == choice.tree


def test_nothing_within_the_limits_says_what_the_smallest_costs() -> None:
    budgets = [
        Budget("multiply-adds", 1e12, parameters),
        Budget("trainable parameters", 22, lambda t: 1e6 * parameters(t)),
    ]
    with pytest.raises(
        ConfigError, match="costs 23,000,000 trainable parameters, allowed are 22; allow more"
    ) as caught:
        from_budget("abc", matrices(0, 3), budgets)
    assert "multiply-adds" not in str(caught.value)


def test_the_choice_depends_on_nothing_but_its_input() -> None:
    similarity = np.full((4, 5, 5), 0.25)
    trees = {from_budget("abcde", similarity, [Budget("p", limit, parameters)]).tree for limit in (44.0, 44.0, 44.5)}
    assert len(trees) == 1


def test_eight_tasks_are_searched_exactly() -> None:
    similarity = matrices(0, 8)
    choice = from_budget(NAMES[:8], similarity, [Budget("parameters", 60, parameters)])
    assert parameters(choice.tree) <= 60
    assert choice.tree == from_counts(NAMES[:8], similarity, choice.tree.counts)
