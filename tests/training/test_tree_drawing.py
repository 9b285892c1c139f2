import io
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from ptsa_serve.task_tree import TaskTree
from training.allocation.counts import from_counts
from training.trees.picture import PALETTE, tree_picture
from training.trees.places import lay_out
from training.trees.text import GAP, tree_text

TREE = TaskTree.parse(
    "segmentation,depth,normals,saliency / segmentation,saliency | depth,normals / "
    "segmentation,saliency | depth,normals / segmentation | saliency | depth | normals"
)

DRAWN = """\
    stage 1              stage 2              stage 3              stage 4
                                                               ┌──────────────┐
                     ┌──────────────┐     ┌──────────────┐  ┌──┤ segmentation │
                  ┌──┤ segmentation ├─────┤ segmentation ├──┤  └──────────────┘
┌──────────────┐  │  │ saliency     │     │ saliency     │  │  ┌──────────────┐
│ segmentation │  │  └──────────────┘     └──────────────┘  └──┤ saliency     │
│ depth        ├──┤                                            └──────────────┘
│ normals      │  │                                            ┌──────────────┐
│ saliency     │  │  ┌──────────────┐     ┌──────────────┐  ┌──┤ depth        │
└──────────────┘  └──┤ depth        ├─────┤ depth        ├──┤  └──────────────┘
                     │ normals      │     │ normals      │  │  ┌──────────────┐
                     └──────────────┘     └──────────────┘  └──┤ normals      │
                                                               └──────────────┘"""

# Sides by which a line leaves a character.
SIDES = {
    "─": "lr", "│": "ud", "┌": "rd", "┐": "ld", "└": "ru", "┘": "lu", "├": "udr", "┤": "udl", "┬": "lrd", "┴": "lru",
    "┼": "udlr",
}  # fmt: skip
OPPOSITE = {"l": ("r", 0, -1), "r": ("l", 0, 1), "u": ("d", -1, 0), "d": ("u", 1, 0)}


@st.composite
def trees(draw: st.DrawFn) -> TaskTree:
    """Trees of 1 to 8 tasks and 1 to 4 stages, groups not in the order of tasks."""
    tasks, stages = draw(st.integers(1, 8)), draw(st.integers(1, 4))
    counts = sorted(draw(st.lists(st.integers(1, tasks), min_size=stages, max_size=stages)))
    values = np.random.default_rng(draw(st.integers(0, 10**6))).uniform(size=(stages, tasks, tasks))
    return from_counts([f"t{'x' * i}" for i in range(tasks)], values + values.transpose(0, 2, 1), counts)


def grid(text: str) -> list[str]:
    """The drawing below the names of the stages, all lines of one length."""
    lines = text.splitlines()[1:]
    return [line.ljust(max(map(len, lines))) for line in lines]


def pixels(png: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(png)) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def has(image: NDArray[np.uint8], color: tuple[float, ...]) -> bool:
    """Whether a hundred pixels or more have this colour (0...1)."""
    wanted = np.round(np.array(color[:3]) * 255)
    return bool((abs(image.astype(float) - wanted).max(-1) <= 1).sum() > 100)


def test_a_tree_of_four_tasks_as_text() -> None:
    assert tree_text(TREE) == DRAWN


@given(trees())
def test_every_line_of_the_text_arrives_somewhere(tree: TaskTree) -> None:
    rows = grid(tree_text(tree))
    for y, row in enumerate(rows):
        for x, sign in enumerate(row):
            for side in SIDES.get(sign, ""):
                back, down, right = OPPOSITE[side]
                assert back in SIDES.get(rows[y + down][x + right], ""), f"{sign} at {y}, {x}:\n" + "\n".join(rows)


@given(trees())
def test_each_column_of_the_text_holds_the_groups_of_its_stage(tree: TaskTree) -> None:
    rows = grid(tree_text(tree))
    width = (len(rows[0]) + GAP) // len(tree.stages)
    for stage in range(len(tree.stages)):
        cells = [row[stage * width : stage * width + width - GAP] for row in rows]
        groups: list[list[str]] = []
        for cell in cells:
            if cell.startswith("┌"):
                groups.append([])
            elif cell[0] in "│┤":
                groups[-1].append(cell[1:-1].strip())
        assert sorted(map(tuple, groups)) == sorted(tree.groups(stage))


@given(trees())
def test_boxes_of_a_stage_do_not_overlap_and_children_stand_in_the_order_of_their_parents(tree: TaskTree) -> None:
    boxes = lay_out(tree)
    for stage in range(len(tree.stages)):
        column = [box for box in boxes if box.stage == stage]
        assert {box.tasks for box in column} == set(tree.groups(stage))
        for above, below in pairwise(column):
            assert above.top + above.size <= below.top
            assert stage == 0 or (above.parent or 0) <= (below.parent or 0)
        for box in column:
            assert stage == 0 or set(box.tasks) <= set(boxes[box.parent or 0].tasks)
            assert box.top < box.middle < box.top + box.size - 1


@settings(max_examples=3, deadline=None)
@given(trees())
def test_the_picture_grows_with_the_tree_and_is_the_same_each_time(tree: TaskTree) -> None:
    png = tree_picture(tree)
    assert png == tree_picture(tree)
    small = pixels(tree_picture(TaskTree.shared(["a"], len(tree.stages))))
    assert pixels(png).shape[1] == small.shape[1]
    assert (pixels(png).shape[0] > small.shape[0]) == (len(tree.tasks) > 1)


def test_each_task_has_its_colour_and_groups_have_the_mean() -> None:
    image = pixels(tree_picture(TREE))
    assert image[0, 0].tolist() == [255, 255, 255]
    colors = np.array([PALETTE(i)[:3] for i in range(4)])
    for group in [[0], [1], [2], [3], [0, 3], [1, 2], [0, 1, 2, 3]]:
        assert has(image, tuple(1 - 0.45 * (1 - colors[group].mean(0))))
    assert not has(image, tuple(1 - 0.45 * (1 - colors[[0, 1]].mean(0))))


@pytest.mark.parametrize("tasks", [["depth"], ["a" * 40, "b"]])
def test_any_length_of_name_and_number_of_tasks_is_drawn(tasks: list[str]) -> None:
    tree = TaskTree.shared(tasks)
    assert tasks[0] in tree_text(tree)
    assert pixels(tree_picture(tree)).std() > 0
