"""What comes out: the maps of one photo, with all that is needed to read them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ptsa_serve.tasks import Task

__all__ = ["Maps", "PhotoInfo", "Prediction"]

Maps = dict[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class PhotoInfo:
    """The photo as a person sees it: width and height in pixels after `orientation` (EXIF, 1...8) was
    applied.
    """

    width: int
    height: int
    orientation: int = 1


@dataclass(frozen=True, slots=True)
class Prediction:
    """Maps of one photo, upright.

    Arrays by task name, H x W = `size`: classes uint8 (H, W); metres float32 (H, W); unit_vectors float32 (H, W, 3),
    unit length; probability and boundary float32 (H, W), 0...1. `tasks` has the same keys in the same order. `size` is
    the photo's (height, width) or the model's own grid. `model` is (name, version). `timings_ms`: milliseconds by
    step. `notes`: what the model says its maps are not good for.
    """

    maps: Mapping[str, np.ndarray]
    tasks: dict[str, Task]
    photo: PhotoInfo
    size: tuple[int, int]
    model: tuple[str, str]
    timings_ms: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
