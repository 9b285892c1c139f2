"""Where the groups of a TaskTree stand in a drawing, whatever it is drawn with: no two lines cross."""

from dataclasses import dataclass

from ptsa_serve.task_tree import Group, TaskTree

__all__ = ["Box", "lay_out"]


@dataclass(frozen=True)
class Box:
    """A group: `size` rows high from row `top` down, one a task and one above and below them; `parent`: a box before.

    All of its descendants lie within the rows of the leaves below it, in the middle of which it stands.
    """

    stage: int
    tasks: Group
    top: int
    parent: int | None

    @property
    def size(self) -> int:
        return len(self.tasks) + 2

    @property
    def middle(self) -> int:
        """The row where lines come and go, not one of the box's edges."""
        return self.top + (self.size - 1) // 2


def lay_out(tree: TaskTree) -> list[Box]:
    """Boxes of all groups, stage by stage, each stage from top to bottom. Boxes of the last stage touch."""
    last = len(tree.stages) - 1
    paths = sorted(_path(tree, group) for group in range(len(tree.stages[last])))
    tops, row = {}, 0
    for path in paths:
        tops[path] = row
        row += len(tree.stages[last][path[-1]]) + 2
    boxes: list[Box] = []
    places: dict[tuple[int, ...], int] = {}
    for stage in range(last + 1):
        for start in dict.fromkeys(path[: stage + 1] for path in paths):
            leaves = [path for path in paths if path[: stage + 1] == start]
            tasks = tree.stages[stage][start[-1]]
            low = tops[leaves[-1]] + len(tree.stages[last][leaves[-1][-1]]) + 2
            top = tops[leaves[0]] + (low - tops[leaves[0]] - len(tasks) - 2) // 2
            places[start] = len(boxes)
            boxes.append(Box(stage, tasks, top, places.get(start[:-1])))
    return boxes


def _path(tree: TaskTree, group: int) -> tuple[int, ...]:
    """The groups of stage 1 to the last that lead to a group of the last."""
    path = [group]
    for stage in range(len(tree.stages) - 1, 0, -1):
        path.insert(0, tree.parent(stage, path[0]))
    return tuple(path)
