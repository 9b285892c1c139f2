import pytest

from export.plan import Branch, make_plan
from training.tree import TaskTree

TREE = TaskTree.parse("a,b,c,d / a,b,c,d / a,d | b,c / a | b | c | d")


def test_shared_prefix_runs_once() -> None:
    assert [len(stage) for stage in make_plan(TREE)] == [1, 1, 2, 4]


def test_branches_continue_their_parents() -> None:
    *_, third, fourth = make_plan(TREE)
    assert third == (Branch(0, 0, ("a", "d")), Branch(1, 0, ("b", "c")))
    assert [(branch.parent, branch.tasks) for branch in fourth] == [(0, ("a",)), (1, ("b",)), (1, ("c",)), (0, ("d",))]


def test_a_subset_of_tasks_leaves_out_the_branches_of_others() -> None:
    plan = make_plan(TREE, tasks=["d", "a"])
    assert [len(stage) for stage in plan] == [1, 1, 1, 2]
    assert plan[-1] == (Branch(0, 0, ("a",)), Branch(3, 0, ("d",)))


def test_equal_groups_run_once_until_they_differ() -> None:
    # Stage 3 has the same weights in both groups, so only stage 4 branches.
    plan = make_plan(TREE, signature=lambda stage, group: group if stage == 3 else 0)
    assert [len(stage) for stage in plan] == [1, 1, 1, 4]


def test_equal_weights_behind_different_parents_stay_apart() -> None:
    plan = make_plan(TREE, signature=lambda stage, group: group if stage == 2 else 0)
    assert [len(stage) for stage in plan] == [1, 1, 2, 2]


def test_independent_trees_share_nothing() -> None:
    assert [len(stage) for stage in make_plan(TaskTree.independent(("a", "b")))] == [2, 2, 2, 2]


@pytest.mark.parametrize("tasks", [["a", "x"], []])
def test_unknown_or_no_tasks_list_the_known_ones(tasks: list[str]) -> None:
    with pytest.raises(ValueError, match="this tree has a, b, c, d"):
        make_plan(TREE, tasks=tasks)
