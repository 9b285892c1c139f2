from collections.abc import Iterator
from contextlib import suppress
from itertools import combinations, permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ptsa_serve.errors import TreeError
from ptsa_serve.task_tree import TaskTree
from training.allocation.counts import default_counts, from_counts
from training.allocation.doubt import doubt
from training.allocation.linkage import link
from training.allocation.partitions import partitions, tree_cost
from training.allocation.search import search
from training.errors import ConfigError
from training.similarity.measures import MEASURES
from training.similarity.record import Similarity, Skipped

NAMES = "abcdefghijkl"


def matrices(seed: int, tasks: int, stages: int = 4) -> NDArray[np.float64]:
    """Random similarities; no two trees cost the same."""
    values = np.random.default_rng(seed).uniform(-1, 1, (stages, tasks, tasks))
    values = (values + values.transpose(0, 2, 1)) / 2
    values[:, range(tasks), range(tasks)] = 1
    return values


def every_tree(tasks: str, counts: tuple[int, ...]) -> Iterator[TaskTree]:
    """All trees of `counts`, by giving every task a group at every stage; `TaskTree` throws out what is not nested."""
    stages = [
        [
            tuple(tuple(t for t, x in zip(tasks, labels, strict=True) if x == g) for g in range(count))
            for labels in product(range(count), repeat=len(tasks))
            if list(dict.fromkeys(labels)) == list(range(count))
        ]
        for count in counts
    ]
    for chain in product(*stages):
        with suppress(TreeError):
            yield TaskTree(tuple(tasks), chain)


def cost(similarity: NDArray[np.float64], tree: TaskTree) -> float:
    """J of the notes, 2.4, written down once more."""
    total = 0.0
    for matrix, stage in zip(similarity, tree.stages, strict=True):
        for group in stage:
            inside = [tree.tasks.index(task) for task in group]
            total += sum(1 - matrix[i, j] for i, j in combinations(inside, 2)) / len(inside)
    return total


@st.composite
def vectors(draw: st.DrawFn, tasks: int, stages: int) -> tuple[int, ...]:
    return tuple(sorted(draw(st.lists(st.integers(1, tasks), min_size=stages, max_size=stages))))


@pytest.mark.parametrize(("tasks", "total"), [(1, 1), (2, 2), (3, 5), (4, 15), (5, 52), (6, 203), (8, 4140)])
def test_there_are_as_many_partitions_as_bell_counted_each_once_and_in_order(tasks: int, total: int) -> None:
    by_count = [partitions(tasks, groups) for groups in range(1, tasks + 1)]
    assert sum(map(len, by_count)) == total
    for groups, found in enumerate(by_count, 1):
        assert list(found) == sorted(set(found))
        assert all(len(p) == groups and sorted(sum(p, ())) == list(range(tasks)) for p in found)


@pytest.mark.parametrize(("tasks", "stages"), [(2, 4), (3, 4), (4, 3), (5, 2)])
@pytest.mark.parametrize("seed", range(2))
def test_no_tree_of_the_same_counts_costs_less(tasks: int, stages: int, seed: int) -> None:
    similarity, names = matrices(seed, tasks, stages), NAMES[:tasks]
    for counts in product(range(1, tasks + 1), repeat=stages):
        if list(counts) == sorted(counts):
            trees = {tree: cost(similarity, tree) for tree in every_tree(names, counts)}
            best = from_counts(names, similarity, counts)
            assert best == min(trees, key=trees.__getitem__)
            assert tree_cost(similarity, best) == pytest.approx(trees[best], abs=1e-12)


@given(st.data(), st.integers(2, 6), st.integers(0, 10**6))
def test_trees_are_nested_and_have_their_counts(data: st.DataObject, tasks: int, seed: int) -> None:
    counts = data.draw(vectors(tasks, 4))
    similarity = matrices(seed, tasks)
    assert from_counts(NAMES[:tasks], similarity, counts).counts == counts  # TaskTree refuses what is not nested
    assert TaskTree(tuple(NAMES[:tasks]), named(link(similarity, counts))).counts == counts


def named(chain: list) -> tuple:
    return tuple(tuple(tuple(NAMES[i] for i in group) for group in stage) for stage in chain)


@given(st.data(), st.integers(2, 5), st.integers(0, 10**6))
def test_relabelling_tasks_relabels_the_tree(data: st.DataObject, tasks: int, seed: int) -> None:
    counts, order = data.draw(vectors(tasks, 4)), data.draw(st.permutations(range(tasks)))
    similarity, names = matrices(seed, tasks), NAMES[:tasks]
    moved = similarity[:, order][:, :, order]
    tree, other = (
        from_counts([names[i] for i in o], s, counts) for o, s in ((range(tasks), similarity), (order, moved))
    )
    if tree_gap(similarity, counts) > 1e-6:  # else which of the two equal ones depends on the order of tasks
        assert TaskTree(tree.tasks, other.stages) == tree


def tree_gap(similarity: NDArray[np.float64], counts: tuple[int, ...]) -> float:
    found = search(similarity, counts).ascending()
    first, second = next(found), next(found, (np.inf, []))
    return second[0] - first[0]


@given(st.data(), st.integers(2, 5), st.integers(0, 10**6), st.integers(0, 3), st.floats(-5, 5))
def test_a_constant_on_all_pairs_of_a_stage_changes_nothing(
    data: st.DataObject, tasks: int, seed: int, stage: int, constant: float
) -> None:
    counts, similarity = data.draw(vectors(tasks, 4)), matrices(seed, tasks)
    raised = similarity.copy()
    raised[stage][~np.eye(tasks, dtype=bool)] += constant
    if tree_gap(similarity, counts) > 1e-6:
        assert from_counts(NAMES[:tasks], raised, counts) == from_counts(NAMES[:tasks], similarity, counts)


@pytest.mark.parametrize("tasks", [4, 8])
def test_equal_similarities_give_the_lexicographically_first_tree(tasks: int) -> None:
    tree = from_counts(NAMES[:tasks], np.full((4, tasks, tasks), 0.3), (1, 2, 2, tasks))
    assert tree.groups(1) == tree.groups(2) == (("a",), tuple(NAMES[1:tasks]))


def test_equal_similarities_of_many_tasks_merge_the_first() -> None:
    tree = from_counts(NAMES[:9], np.full((2, 9, 9), 0.3), (2, 8))
    assert str(tree) == "a,b,c,d,e,f,g,h | i / a,b | c | d | e | f | g | h | i"


def test_of_trees_within_a_billionth_the_first_is_taken() -> None:
    similarity = np.full((2, 3, 3), 0.5)
    similarity[:, 0, 1] = similarity[:, 1, 0] = 0.5 + 4e-10
    assert str(from_counts("abc", similarity, (1, 2))) == "a,b,c / a | b,c"
    similarity[:, 0, 1] = similarity[:, 1, 0] = 0.5 + 4e-9
    assert str(from_counts("abc", similarity, (1, 2))) == "a,b,c / a,b | c"


@pytest.mark.parametrize("counts", [(1, 2, 2, 4), (1, 2, 3, 3), (2, 2, 3, 4)])
def test_ascending_gives_every_tree_once_from_cheap_to_dear(counts: tuple[int, ...]) -> None:
    similarity = matrices(3, 4)
    found = list(search(similarity, counts).ascending())
    trees = [TaskTree(tuple("abcd"), named(chain)) for _, chain in found]
    assert len(trees) == len(set(trees))
    assert set(trees) == set(every_tree("abcd", counts))
    costs = [value for value, _ in found]
    assert costs == pytest.approx(sorted(costs))
    assert costs == pytest.approx([cost(similarity, tree) for tree in trees])


def test_planted_groups_are_found_at_any_number_of_tasks() -> None:
    for tasks in (4, 7, 12):
        similarity = np.full((4, tasks, tasks), 0.1)
        for i, j in permutations(range(tasks), 2):
            similarity[:, i, j] += 0.5 * (i % 2 == j % 2) + 0.2 * (i % 4 == j % 4)
        tree = from_counts(NAMES[:tasks], similarity, (1, 2, min(4, tasks), tasks))
        assert tree.groups(1) == (tuple(NAMES[:tasks:2]), tuple(NAMES[1:tasks:2]))
        assert tree.groups(2) == tuple(tuple(NAMES[i:tasks:4]) for i in range(4))


def test_average_linkage_merges_the_last_stage_first() -> None:
    similarity = np.zeros((2, 9, 9))
    similarity[1, 0, 8] = similarity[1, 8, 0] = 0.9  # the most alike in the last stage
    similarity[0, 0, 1] = similarity[0, 1, 0] = 0.8  # and in the first
    tree = from_counts(NAMES[:9], similarity, (7, 8))
    assert ("a", "i") in tree.groups(1)
    assert ("a", "b", "i") in tree.groups(0)


def test_default_counts_end_with_a_group_a_task() -> None:
    assert default_counts(4) == (1, 2, 2, 4)
    assert [default_counts(n) for n in (1, 2, 3, 5)] == [(1, 1, 1, 1), (1, 1, 2, 2), (1, 2, 2, 3), (1, 2, 3, 5)]
    for tasks in range(1, 13):
        counts = from_counts(NAMES[:tasks], matrices(0, tasks)).counts
        assert counts == default_counts(tasks)
        assert counts[-1] == tasks


@pytest.mark.parametrize("counts", [(1, 2, 2), (2, 1, 2, 3), (0, 1, 2, 3), (1, 2, 3, 4), ()])
def test_counts_that_do_not_fit_are_named(counts: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"groups a stage; needed are 4 numbers that never fall, from 1 to 3"):
        from_counts("abc", matrices(0, 3), counts)


def test_similarities_that_do_not_fit_are_refused() -> None:
    odd = matrices(0, 3)
    odd[0, 0, 1] = np.nan
    lopsided = matrices(0, 3)
    lopsided[0, 0, 1] += 0.1
    for similarity in (odd, lopsided, matrices(0, 4), matrices(0, 3)[0]):
        with pytest.raises(ConfigError, match="similarities"):
            from_counts("abc", similarity)


def record(similarity: NDArray[np.float64], error: float, tasks: str = "abcd") -> Similarity:
    full = np.concatenate([similarity, similarity[:1]])
    errors = np.where(np.eye(len(tasks), dtype=bool), 0, np.full(full.shape, error))
    counts = np.full(full.shape, 64)
    skipped = {task: Skipped() for task in tasks}
    return Similarity(
        tuple(tasks), dict.fromkeys(MEASURES, full), dict.fromkeys(MEASURES, errors), counts, skipped, 64, 1
    )


def test_doubt_names_the_pairs_that_decided_where_their_intervals_overlap() -> None:
    similarity = np.full((2, 3, 3), 0.1)
    for (i, j), value in {(0, 1): 0.40, (1, 2): 0.35}.items():
        similarity[1, i, j] = similarity[1, j, i] = value
    tree = from_counts("abc", similarity, (1, 2))
    # 0.40 and 0.35 are 0.05 apart: 95 % intervals of ± 0.024 do not overlap, of ± 0.027 do.
    assert doubt(record(similarity, 0.0122, "abc"), tree) is None
    text = doubt(record(similarity, 0.0138, "abc"), tree)
    assert text is not None
    assert "a,b,c / a | b,c costs 0.025 ± 0.027 more" in text
    assert "stage 2 joins a and b (0.400 ± 0.014) rather than b and c (0.350 ± 0.014)" in text


def test_no_doubt_where_there_is_only_one_tree() -> None:
    for counts in ((1, 1, 1, 1), (1, 4, 4, 4)):
        similarity = matrices(0, 4)
        assert doubt(record(similarity, 9.0), from_counts("abcd", similarity, counts)) is None


@settings(max_examples=20)
@given(st.integers(0, 10**6))
def test_large_errors_always_leave_doubt_and_small_ones_never(seed: int) -> None:
    similarity = matrices(seed, 4)
    tree = from_counts("abcd", similarity)
    assert doubt(record(similarity, 9.0), tree) is not None
    if tree_gap(similarity, tree.counts) > 1e-6:
        assert doubt(record(similarity, 1e-9), tree) is None
