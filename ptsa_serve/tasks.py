"""The dense-prediction tasks: one row each, read by training, export, service and clients alike."""

from dataclasses import dataclass
from typing import Literal

__all__ = ["KINDS", "TASKS", "Color", "Kind", "Task"]

Kind = Literal["classes", "metres", "unit_vectors", "probability", "boundary"]
Color = tuple[int, int, int]

# What a map of each kind is, for an image of H x W: the array of docs/http-api.md, as (dtype, trailing axes).
KINDS: dict[str, tuple[str, tuple[int, ...]]] = {
    "classes": ("uint8", ()),
    "metres": ("float32", ()),
    "unit_vectors": ("float32", (3,)),
    "probability": ("float32", ()),
    # Of lines one pixel wide, where "probability" is of areas: learnt, measured and scaled in another way.
    "boundary": ("float32", ()),
}


@dataclass(frozen=True, slots=True)
class Task:
    """What one task returns, whatever model made it.

    name: key of the map everywhere. kind: meaning of the map, a key of `KINDS`. channels: planes of the
    head's raw output. unit: "m" for metres. classes and colors: name and sRGB colour of each class index,
    `classes` only.
    """

    name: str
    kind: Kind
    channels: int
    unit: str | None = None
    classes: tuple[str, ...] = ()
    colors: tuple[Color, ...] = ()


# NYU-40 in its usual order, without the last class ("otherprop"). Structure of rooms in quiet colours (walls grey-blue,
# floor wood), things in strong ones; any two at least 24 apart in RGB.
_NYU39: tuple[tuple[str, Color], ...] = (
    ("wall", (174, 187, 201)),
    ("floor", (152, 113, 77)),
    ("cabinet", (230, 159, 0)),
    ("bed", (86, 120, 220)),
    ("chair", (220, 50, 47)),
    ("sofa", (0, 158, 115)),
    ("table", (143, 76, 163)),
    ("door", (247, 202, 143)),
    ("window", (86, 204, 242)),
    ("bookshelf", (120, 70, 20)),
    ("picture", (240, 98, 172)),
    ("counter", (104, 176, 60)),
    ("blinds", (170, 225, 235)),
    ("desk", (190, 120, 230)),
    ("shelves", (196, 146, 66)),
    ("curtain", (0, 121, 156)),
    ("dresser", (255, 127, 80)),
    ("pillow", (255, 187, 210)),
    ("mirror", (150, 240, 205)),
    ("floor mat", (200, 70, 110)),
    ("clothes", (60, 60, 160)),
    ("ceiling", (232, 234, 228)),
    ("books", (176, 30, 30)),
    ("refrigerator", (96, 150, 170)),
    ("television", (30, 34, 48)),
    ("paper", (250, 250, 150)),
    ("towel", (20, 190, 200)),
    ("shower curtain", (110, 215, 130)),
    ("box", (205, 170, 110)),
    ("whiteboard", (210, 220, 255)),
    ("person", (255, 215, 0)),
    ("night stand", (160, 82, 45)),
    ("toilet", (128, 128, 0)),
    ("sink", (0, 100, 80)),
    ("lamp", (255, 240, 60)),
    ("bathtub", (70, 130, 255)),
    ("bag", (128, 0, 64)),
    ("otherstructure", (110, 118, 130)),
    ("otherfurniture", (150, 190, 20)),
)

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            "segmentation",
            "classes",
            channels=len(_NYU39),
            classes=tuple(name for name, _ in _NYU39),
            colors=tuple(color for _, color in _NYU39),
        ),
        Task("depth", "metres", channels=1, unit="m"),
        Task("normals", "unit_vectors", channels=3),
        Task("saliency", "probability", channels=1),
    )
}
