"""What the numbers and names in the files of PASCAL stand for: facts of the data sets, and colours to see them in."""

from ptsa_serve.tasks import Color, Task

__all__ = ["FLOORS", "HUMAN_PARTS", "PARTS", "SEGMENTATION", "WITH_NORMALS"]

# PASCAL VOC's classes in their order; its development kit's colours.
_VOC: tuple[tuple[str, Color], ...] = (
    ("background", (0, 0, 0)),
    ("aeroplane", (128, 0, 0)),
    ("bicycle", (0, 128, 0)),
    ("bird", (128, 128, 0)),
    ("boat", (0, 0, 128)),
    ("bottle", (128, 0, 128)),
    ("bus", (0, 128, 128)),
    ("car", (128, 128, 128)),
    ("cat", (64, 0, 0)),
    ("chair", (192, 0, 0)),
    ("cow", (64, 128, 0)),
    ("diningtable", (192, 128, 0)),
    ("dog", (64, 0, 128)),
    ("horse", (192, 0, 128)),
    ("motorbike", (64, 128, 128)),
    ("person", (192, 128, 128)),
    ("pottedplant", (0, 64, 0)),
    ("sheep", (128, 64, 0)),
    ("sofa", (0, 192, 0)),
    ("train", (128, 192, 0)),
    ("tvmonitor", (0, 64, 128)),
)

_HUMAN: tuple[tuple[str, Color], ...] = (
    ("background", (0, 0, 0)),
    ("head", (230, 159, 0)),
    ("torso", (86, 180, 233)),
    ("upper arms", (0, 158, 115)),
    ("lower arms", (240, 228, 66)),
    ("upper legs", (213, 94, 0)),
    ("lower legs", (204, 121, 167)),
)

# Class of PASCAL-Part's names, left and right alike; the six parts of Xia et al. (CVPR 2017).
_NAMES = {
    "head": "hair head lear lebrow leye mouth nose rear rebrow reye",
    "torso": "neck torso",
    "upper arms": "luarm ruarm",
    "lower arms": "lhand llarm rhand rlarm",
    "upper legs": "luleg ruleg",
    "lower legs": "lfoot llleg rfoot rlleg",
}
PARTS = {part: place for place, (name, _) in enumerate(_HUMAN) for part in _NAMES.get(name, "").split()}

# Of PASCAL-Context's 459 classes (labels.txt, from 1), those with a name that NYU Depth v2 has too, and tvmonitor: the
# network whose normals were distilled learnt from NYU, so ASTMT trusts it there alone.
# fmt: off
WITH_NORMALS = (
    3, 4, 6, 9, 10, 11, 13, 15, 17, 18, 22, 23, 29, 30, 33, 34, 36, 37, 38, 39, 41, 43, 46, 49, 50, 51, 53, 55, 56,
    59, 61, 62, 65, 66, 68, 69, 72, 73, 78, 83, 84, 85, 87, 88, 95, 96, 101, 104, 105, 107, 111, 113, 115, 122, 124,
    135, 141, 142, 143, 146, 150, 154, 157, 158, 159, 165, 172, 174, 181, 183, 184, 191, 193, 195, 197, 199, 202,
    213, 215, 216, 219, 220, 223, 225, 228, 230, 232, 233, 238, 239, 242, 243, 246, 250, 251, 252, 255, 260, 261,
    263, 269, 272, 273, 275, 281, 283, 284, 285, 286, 287, 288, 290, 291, 292, 293, 295, 304, 307, 309, 310, 314,
    315, 319, 323, 329, 330, 331, 336, 342, 345, 349, 350, 351, 352, 355, 357, 368, 370, 371, 374, 379, 380, 383,
    384, 397, 401, 403, 405, 407, 408, 411, 412, 413, 414, 417, 419, 421, 423, 427, 429, 430, 432, 440, 441, 442,
    443, 444, 446, 454, 457,
)
# fmt: on

# floor, grass, ground, road, sidewalk.
FLOORS = (158, 186, 189, 324, 353)


def _task(name: str, rows: tuple[tuple[str, Color], ...]) -> Task:
    return Task(name, "classes", len(rows), classes=tuple(n for n, _ in rows), colors=tuple(c for _, c in rows))


SEGMENTATION = _task("segmentation", _VOC)
HUMAN_PARTS = _task("human_parts", _HUMAN)
