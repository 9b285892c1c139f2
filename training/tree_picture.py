"""A TaskTree as a PNG: stages from left to right, a box for each group, colours that part with the groups."""

import io

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, PathPatch
from matplotlib.path import Path

from training.tree import TaskTree
from training.tree_layout import Box, lay_out

__all__ = ["tree_picture"]

# Inches.
ROW, WIDTH, GAP = 0.24, 1.5, 0.75
PALETTE = colormaps["Set2"]
INK = "#333333"


def tree_picture(tree: TaskTree) -> bytes:
    """A PNG. A group has the mean of its tasks' colours: groups of many are grey, single tasks have their own."""
    boxes = lay_out(tree)
    height = max(box.top + box.size for box in boxes) * ROW
    width = len(tree.stages) * (WIDTH + GAP) - GAP
    figure = Figure(figsize=(width + 0.3, height + 0.75), dpi=160)
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set_xlim(-0.15, width + 0.15)
    ax.set_ylim(height + 0.1, -0.65)
    ax.set_axis_off()
    for stage, count in enumerate(tree.counts):
        middle = _left(stage) + WIDTH / 2
        ax.text(
            middle, -0.42, f"stage {stage + 1}", ha="center", va="center", fontsize=11, fontweight="bold", color=INK
        )
        ax.text(
            middle, -0.2, f"{count} group{'s' * (count > 1)}", ha="center", va="center", fontsize=8, color="#777777"
        )
    for box in boxes:
        if box.parent is not None:
            _line(ax, boxes[box.parent], box)
    for box in boxes:
        _box(ax, box, _color(tree, box))
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def _left(stage: int) -> float:
    return stage * (WIDTH + GAP)


def _middle(box: Box) -> float:
    return (box.top + box.size / 2) * ROW


def _color(tree: TaskTree, box: Box) -> tuple[float, float, float]:
    colors = [to_rgb(PALETTE(tree.tasks.index(task) % PALETTE.N)) for task in box.tasks]
    red, green, blue = np.mean(colors, axis=0)
    return float(red), float(green), float(blue)


def _box(ax: Axes, box: Box, color: tuple[float, float, float]) -> None:
    # Half a row shorter at both ends than its place, so that neighbours do not touch.
    x, y, height = _left(box.stage), (box.top + 0.5) * ROW, (box.size - 1) * ROW
    style = "round,pad=0,rounding_size=0.08"
    pale = tuple(1 - 0.45 * (1 - part) for part in color)
    ax.add_patch(FancyBboxPatch((x, y), WIDTH, height, boxstyle=style, facecolor=pale, edgecolor=color, linewidth=1.6))
    for row, task in enumerate(box.tasks):
        ax.text(
            x + WIDTH / 2,
            (box.top + 1.5 + row) * ROW,
            task.replace("_", " "),
            ha="center",
            va="center",
            fontsize=9,
            color=INK,
        )


def _line(ax: Axes, parent: Box, child: Box) -> None:
    """An S from the middle of a box's right edge to the middle of the other's left one."""
    start, end, half = _left(parent.stage) + WIDTH, _left(child.stage), GAP / 2
    points = [
        (start, _middle(parent)),
        (start + half, _middle(parent)),
        (end - half, _middle(child)),
        (end, _middle(child)),
    ]
    path = Path(points, [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4])
    ax.add_patch(PathPatch(path, facecolor="none", edgecolor="#999999", linewidth=1.6))
