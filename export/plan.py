"""Which copy of which stage runs for which tasks: the task tree as a trie, whose common prefixes run once."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from training.tree import TaskTree

__all__ = ["Branch", "Plan", "make_plan"]


@dataclass(frozen=True, slots=True)
class Branch:
    """One copy of a stage.

    group: index of the task group whose adapters it has. parent: index of the branch, in the stage before, that it
    continues (0 at the first stage). tasks: who reads its output, in the tree's order.
    """

    group: int
    parent: int
    tasks: tuple[str, ...]


Plan = tuple[tuple[Branch, ...], ...]


def make_plan(
    tree: TaskTree, *, tasks: Sequence[str] | None = None, signature: Callable[[int, int], Hashable] | None = None
) -> Plan:
    """The branches of every stage, for `tasks` or for all.

    `signature(stage, group)` tells weights apart: groups that continue one branch with equal signatures are one
    branch. Without it each group counts as different. Raises ValueError for a task that the tree does not know.
    """
    wanted = tree.tasks if tasks is None else tuple(task for task in tree.tasks if task in tasks)
    unknown = sorted(set(tasks or ()) - set(tree.tasks))
    if unknown or not wanted:
        raise ValueError(
            f"tasks {unknown or list(tasks or ())}: this tree has {', '.join(tree.tasks)}; name some of them"
        )
    at = dict.fromkeys(wanted, 0)
    plan = []
    for stage in range(len(tree.stages)):
        found: dict[tuple[int, Hashable], list[str]] = {}
        for task in wanted:
            group = tree.group_of(stage, task)
            found.setdefault((at[task], signature(stage, group) if signature else group), []).append(task)
        plan.append(
            tuple(Branch(tree.group_of(stage, names[0]), parent, tuple(names)) for (parent, _), names in found.items())
        )
        at = {task: index for index, names in enumerate(found.values()) for task in names}
    return tuple(plan)
