"""A TaskTree as a PNG: stages from left to right, a box for each group, colours that part with the groups."""

import io
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, PathPatch
from matplotlib.path import Path

from ptsa_serve.task_tree import TaskTree
from training.trees.places import Box, lay_out

__all__ = ["tree_picture"]

# Inches. A letter of the names is about so wide at 9 points.
ROW, GAP, LETTER, MARGIN = 0.24, 0.75, 0.085, 0.15
PALETTE = colormaps["Set2"]
INK, PALE = "#333333", "#777777"
CENTRED: dict[str, Any] = {"ha": "center", "va": "center"}


def tree_picture(tree: TaskTree) -> bytes:
    """A PNG. A group has the mean of its tasks' colours: groups of many are grey, single tasks have their own."""
    boxes = lay_out(tree)
    width = max(1.1, LETTER * max(map(len, tree.tasks)) + 0.4)
    lefts = [stage * (width + GAP) for stage in range(len(tree.stages))]
    right, bottom = lefts[-1] + width + MARGIN, max(box.top + box.size for box in boxes) * ROW + MARGIN / 2
    figure = Figure(figsize=(right + MARGIN, bottom + 0.65), dpi=160)
    ax = figure.add_axes((0, 0, 1, 1), xlim=(-MARGIN, right), ylim=(bottom, -0.65))
    ax.set_axis_off()
    for number, (left, count) in enumerate(zip(lefts, tree.counts, strict=True), 1):
        groups = "1 group" if count == 1 else f"{count} groups"
        ax.text(left + width / 2, -0.42, f"stage {number}", fontsize=11, fontweight="bold", color=INK, **CENTRED)
        ax.text(left + width / 2, -0.2, groups, fontsize=8, color=PALE, **CENTRED)
    for box in boxes:
        if box.parent is not None:
            parent = boxes[box.parent]
            _line(ax, (lefts[parent.stage] + width, _middle(parent)), (lefts[box.stage], _middle(box)))
        _box(ax, box, lefts[box.stage], width, _color(tree, box))
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def _middle(box: Box) -> float:
    return (box.top + box.size / 2) * ROW


def _color(tree: TaskTree, box: Box) -> tuple[float, float, float]:
    colors = [to_rgb(PALETTE(tree.tasks.index(task) % PALETTE.N)) for task in box.tasks]
    red, green, blue = np.mean(colors, axis=0)
    return float(red), float(green), float(blue)


def _box(ax: Axes, box: Box, left: float, width: float, color: tuple[float, float, float]) -> None:
    # Half a row shorter at both ends than its place, so that neighbours do not touch.
    top, height = (box.top + 0.5) * ROW, (box.size - 1) * ROW
    pale = tuple(1 - 0.45 * (1 - part) for part in color)
    style = "round,pad=0,rounding_size=0.08"
    ax.add_patch(FancyBboxPatch((left, top), width, height, boxstyle=style, facecolor=pale, edgecolor=color, lw=1.6))
    for row, task in enumerate(box.tasks):
        y = (box.top + 1.5 + row) * ROW
        ax.text(left + width / 2, y, task.replace("_", " "), fontsize=9, color=INK, **CENTRED)


def _line(ax: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    """An S between two points, level at both."""
    half = (start[0] + end[0]) / 2
    path = Path([start, (half, start[1]), (half, end[1]), end], [Path.MOVETO, *[Path.CURVE4] * 3])
    ax.add_patch(PathPatch(path, facecolor="none", edgecolor="#999999", lw=1.6, zorder=0))
