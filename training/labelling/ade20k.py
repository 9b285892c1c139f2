"""Two small networks trained on ADE20K (Zhou et al., CVPR 2017), and what their classes are among NYU's 39.

DeepLab v3 on MobileNet v2 knows all 150 classes; MOSAIC (Wang and Howard, arXiv 2112.11623), the better one, knows the
first 31. ADE20K's classes are numbered from 1 in its own order, 0 is anything else.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ptsa_serve.resize import shrink
from ptsa_serve.tasks import TASKS
from training.labelling.base import Guess, Guesses
from training.labelling.grids import on_grid
from training.labelling.litert import LiteRT

__all__ = ["ADE20K", "FILES", "ADETeacher", "Outputs", "familiar", "nyu_classes", "room_share"]

FILES = ("deeplabv3_mnv2_ade20k150_logits.tflite", "mosaic_r3_logits_uint8.tflite")

# Which of ADE20K's classes are one of NYU's; paper and otherstructure, otherfurniture have none.
_TO_NYU: Mapping[str, tuple[int, ...]] = {
    "wall": (1, 43),
    "floor": (4,),
    "cabinet": (11, 36, 100),
    "bed": (8,),
    "chair": (20, 31, 32, 76, 111),
    "sofa": (24, 98),
    "table": (16, 57, 65),
    "door": (15, 59),
    "window": (9,),
    "bookshelf": (63,),
    "picture": (23, 101),
    "counter": (46, 71, 74),
    "blinds": (64,),
    "desk": (34,),
    "shelves": (25,),
    "curtain": (19,),
    "dresser": (45,),
    "pillow": (40, 58),
    "mirror": (28,),
    "floor mat": (29,),
    "clothes": (93,),
    "ceiling": (6,),
    "books": (68,),
    "refrigerator": (51,),
    "television": (75, 90, 131, 142, 144),
    "towel": (82,),
    "shower curtain": (146,),
    "box": (42, 56),
    "whiteboard": (145,),
    "person": (13,),
    "toilet": (66,),
    "sink": (48,),
    "lamp": (37, 83, 86, 135),
    "bathtub": (38,),
    "bag": (113, 116),
}
# What is found out of doors as well and says nothing about a room.
_ANYWHERE = {"person", "clothes", "bag", "box", "books", "chair", "table"}
_CLASSES, _SHARED = 151, 32  # of the two networks, with 0

_MATRIX = np.zeros((_CLASSES, len(TASKS["segmentation"].classes)), np.float32)
for _name, _numbers in _TO_NYU.items():
    _MATRIX[list(_numbers), TASKS["segmentation"].classes.index(_name)] = 1
_ROOM = [number for name, numbers in _TO_NYU.items() if name not in _ANYWHERE for number in numbers]


@dataclass(frozen=True, eq=False)
class Outputs:
    """What the two make of a photo squeezed to a square, all float32 (h, w, C).

    logits: (129, 129, 151) and features (65, 65, 256) of DeepLab. few_logits: (128, 128, 32) and few_features
    (32, 32, 128) of MOSAIC.
    """

    logits: NDArray[np.float32]
    features: NDArray[np.float32]
    few_logits: NDArray[np.float32]
    few_features: NDArray[np.float32]


class ADE20K:
    """The two networks. Raises CheckpointError for damaged files."""

    def __init__(self, deeplab: Path, mosaic: Path) -> None:
        self._deeplab, self._mosaic = LiteRT(deeplab), LiteRT(mosaic)

    def __call__(self, photo: NDArray[np.uint8]) -> Outputs:
        """Of an upright RGB photo (H, W, 3)."""
        all_classes = self._deeplab(shrink(photo, self._deeplab.size).astype(np.float32) / np.float32(127.5) - 1)
        return Outputs(*all_classes, *self._mosaic(shrink(photo, self._mosaic.size)))


class ADETeacher:
    """Segmentation into NYU's classes by the two networks alone, which never saw NYU."""

    def __init__(self, deeplab: Path, mosaic: Path) -> None:
        self._networks = ADE20K(deeplab, mosaic)

    def __call__(self, photo: NDArray[np.uint8]) -> Guesses:
        """See `LabelTeacher`."""
        outputs = self._networks(photo)
        classes = nyu_classes(outputs)
        guess = Guess(classes, classes.max(-1))
        return Guesses({"segmentation": guess}, familiar(room_share(outputs.logits), guess))


def nyu_classes(outputs: Outputs) -> NDArray[np.float32]:
    """Probabilities (128, 128, 39) of NYU's classes; what they lack to 1 is none of them.

    The mean of both networks' beliefs in each of the 31 classes that both know; what is left for all the others is
    shared out among them as DeepLab has it.
    """
    few = _softmax(outputs.few_logits)
    many = on_grid(_softmax(outputs.logits), few.shape[:2])
    known = (many[..., 1:_SHARED] + few[..., 1:]) / 2
    others = np.concatenate([many[..., :1], many[..., _SHARED:]], -1)
    mass = others.sum(-1, keepdims=True)
    others *= (mass + few[..., :1]) / 2 / np.maximum(mass, 1e-6)
    every = np.concatenate([others[..., :1], known, others[..., 1:]], -1)
    return (every @ _MATRIX).astype(np.float32, copy=False)


def room_share(logits: NDArray[np.float32]) -> float:
    """How much of a photo is walls, floor, ceiling and furniture, 0...1, by DeepLab's logits (h, w, 151)."""
    return float(_softmax(logits)[..., _ROOM].sum(-1).mean())


def familiar(share: float, segmentation: Guess) -> float:
    """How much of a photo is a room that the teacher knows its way about, 0...1: `room_share` times its confidence.

    Either alone is high for many a close-up: what fills the picture passes for a floor, or one thing is sure.
    """
    assert segmentation.confidence is not None
    return share * float(segmentation.confidence.mean())


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)
