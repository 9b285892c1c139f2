import pytest

from ptsa_serve.task_tree import TaskTree
from training.backbones import build_backbone
from training.network.layout import Layout
from training.network.plan import Plan, make_plan

TREE = TaskTree.parse("a,b,c,d / a,b,c,d / a,d | b,c / a | b | c | d")
SLOTS = build_backbone("swin_nano").slots


def counts(plan: Plan) -> list[int]:
    """Nodes of the first slot of each stage's last block."""
    return [len(plan[next(s.name for s in SLOTS if s.stage == stage and s.last)]) for stage in range(4)]


def by_group(slot, stream):
    return stream.tasks


def test_each_group_is_a_node() -> None:
    plan = make_plan(SLOTS, Layout(TREE), by_group)
    assert counts(plan) == [1, 1, 2, 4]
    last = plan[SLOTS[-1].name]
    assert [node.stream.tasks for node in last] == [("a",), ("b",), ("c",), ("d",)]


def test_a_node_continues_the_one_of_its_parents() -> None:
    plan = make_plan(SLOTS, Layout(TREE), by_group)
    first = next(slot.name for slot in SLOTS if slot.stage == 3)
    assert [node.parent for node in plan[first]] == [0, 1, 1, 0]


def test_a_subset_of_tasks_takes_what_it_needs() -> None:
    plan = make_plan(SLOTS, Layout(TREE), by_group, tasks=["d", "a"])
    assert counts(plan) == [1, 1, 1, 2]
    assert [node.stream.tasks for node in plan[SLOTS[-1].name]] == [("a",), ("d",)]


@pytest.mark.parametrize(("stage", "expected"), [(3, [1, 1, 1, 4]), (2, [1, 1, 2, 2])])
def test_streams_with_equal_tensors_are_one_node(stage: int, expected: list[int]) -> None:
    plan = make_plan(SLOTS, Layout(TREE), lambda slot, stream: stream.tasks if slot.stage == stage else 0)
    assert counts(plan) == expected


def test_a_plan_forks_at_the_first_slot_that_differs() -> None:
    """Not with its stage: what lies before that slot is one."""
    different = "layers.2.blocks.3.mlp.fc1"
    plan = make_plan(SLOTS, Layout(TREE), lambda slot, stream: stream.tasks if slot.name == different else 0)
    names = list(plan)
    assert {len(plan[name]) for name in names[: names.index(different)]} == {1}
    assert {len(plan[name]) for name in names[names.index(different) :]} == {2}


def test_independent_tasks_share_nothing() -> None:
    assert counts(make_plan(SLOTS, Layout(TaskTree.independent(("a", "b"))), by_group)) == [2, 2, 2, 2]


@pytest.mark.parametrize("tasks", [["e"], ["a", "e"], []])
def test_unknown_tasks_are_refused(tasks: list[str]) -> None:
    with pytest.raises(ValueError, match="this tree has a, b, c, d; name some of them"):
        make_plan(SLOTS, Layout(TREE), by_group, tasks=tasks)


def test_teeth_leave_in_the_last_block_and_end_where_they_are_read() -> None:
    for tap, merging in (("stage", 1), ("merged", 3)):
        tree = TaskTree.shared(("a", "b"))
        plan = make_plan(SLOTS, Layout(tree, teeth="proj", tap=tap), lambda slot, stream: stream)
        alive = {name: len(nodes) for name, nodes in plan.items() if len(nodes) > 1}
        expected = [s.name for s in SLOTS if s.last and s.kind in ("proj", "fc1", "fc2")]
        assert [name for name in alive if name.endswith(("proj", "fc1", "fc2"))] == expected
        assert len(plan["layers.1.downsample.reduction"]) == merging
        assert len(plan["layers.1.blocks.0.norm1"]) == 1
