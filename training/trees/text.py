"""A TaskTree as text: stages from left to right, a box for each group, lines where groups part."""

from ptsa_serve.task_tree import TaskTree
from training.trees.places import Box, lay_out

__all__ = ["tree_text"]

GAP = 5  # columns between boxes; lines part in the middle one

# By the sides of a cell that a line leaves by: up, down, left, right. A parent stands between its outer children.
_LINES = {"lr": "─", "ud": "│", "udr": "├", "udl": "┤", "udlr": "┼", "dr": "┌", "ur": "└"}


def tree_text(tree: TaskTree) -> str:
    """Lines of text without an end of line after the last; four tasks in four stages fit in 90 columns."""
    boxes = lay_out(tree)
    width = max(len("stage 1"), *(len(task) + 4 for task in tree.tasks))
    columns = [stage * (width + GAP) for stage in range(len(tree.stages))]
    height = max(box.top + box.size for box in boxes)
    grid = [[" "] * (columns[-1] + width) for _ in range(height)]
    for box in boxes:
        _draw_box(grid, box, columns[box.stage], width)
    for index, box in enumerate(boxes):
        if children := [child for child in boxes if child.parent == index]:
            _draw_lines(grid, box, children, columns[box.stage] + width)
    head = (" " * GAP).join(f"stage {stage + 1}".center(width) for stage in range(len(columns)))
    return "\n".join(line.rstrip() for line in [head, *map("".join, grid)])


def _draw_box(grid: list[list[str]], box: Box, left: int, width: int) -> None:
    rows = [f"│ {task:<{width - 4}} │" for task in box.tasks]
    edge = "─" * (width - 2)
    for offset, row in enumerate([f"┌{edge}┐", *rows, f"└{edge}┘"]):
        grid[box.top + offset][left : left + width] = row


def _draw_lines(grid: list[list[str]], box: Box, children: list[Box], left: int) -> None:
    """From the right edge of `box`, at column `left` - 1, to its children's left edges."""
    rows = [child.middle for child in children]
    for column in range(left, left + GAP):
        for row in rows if column > left + GAP // 2 else [box.middle]:
            grid[row][column] = "─"
    low, high = min(*rows, box.middle), max(*rows, box.middle)
    for row in range(low, high + 1):
        sides = ("u" if row > low else "") + ("d" if row < high else "")
        sides += ("l" if row == box.middle else "") + ("r" if row in rows else "")
        grid[row][left + GAP // 2] = _LINES[sides]
    grid[box.middle][left - 1] = "├"
    for row in rows:
        grid[row][left + GAP] = "┤"
