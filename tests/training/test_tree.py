import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptsa_serve.task_tree import TaskTree

ABCD = ("a", "b", "c", "d")


@st.composite
def trees(draw: st.DrawFn) -> TaskTree:
    """Any tree of 1 to 5 tasks: from one group, each stage may split each group."""
    tasks = tuple("abcde"[: draw(st.integers(1, 5))])
    stages = [(tasks,)]
    for _ in range(draw(st.integers(1, 4))):
        groups = []
        for group in stages[-1]:
            sides = draw(st.lists(st.booleans(), min_size=len(group), max_size=len(group)))
            for side in (True, False):
                part = tuple(task for task, s in zip(group, sides, strict=True) if s == side)
                groups += [part] if part else []
        stages.append(tuple(draw(st.permutations(groups))))
    return TaskTree(tasks, tuple(stages))


@given(trees())
def test_json_round_trip_is_identity(tree: TaskTree) -> None:
    assert TaskTree.from_json(tree.to_json()) == tree


@given(trees())
def test_every_group_lies_inside_its_parent(tree: TaskTree) -> None:
    assert list(tree.counts) == sorted(tree.counts)
    for stage in range(1, len(tree.stages)):
        for index, group in enumerate(tree.groups(stage)):
            assert set(group) <= set(tree.groups(stage - 1)[tree.parent(stage, index)])


def test_order_of_groups_and_of_tasks_in_them_does_not_matter() -> None:
    assert TaskTree.parse("a,b,c / c | b,a") == TaskTree(("a", "b", "c"), ((("a", "b", "c"),), (("a", "b"), ("c",))))


def test_extremes() -> None:
    assert TaskTree.shared(ABCD).counts == (1, 1, 1, 1)
    assert TaskTree.independent(ABCD).counts == (4, 4, 4, 4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b / a", "stage 2 must name each"),
        ("a,b / a,b | a", "stage 2 must name each"),
        ("a,b,c / a,b | c / a | b,c", r"stage 3 joins \['b', 'c'\]"),
        ("a,a", "distinct tasks"),
    ],
)
def test_a_wrong_tree_names_stage_and_tasks(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TaskTree.parse(text)


def test_unknown_task_lists_known_ones() -> None:
    with pytest.raises(ValueError, match="it has a, b, c, d"):
        TaskTree.shared(ABCD).group_of(0, "x")


def test_another_version_is_refused() -> None:
    with pytest.raises(ValueError, match="version 2"):
        TaskTree.from_json({"version": 2})
