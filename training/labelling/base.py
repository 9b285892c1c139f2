"""What a teacher with labels is: a photo in, and out come maps of the tasks it knows, each on a grid of its own."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Guess", "Guesses", "LabelTeacher", "TeacherKind"]


@dataclass(frozen=True, eq=False)
class Guess:
    """A teacher's map of one task, on a grid (h, w) that covers the whole photo.

    values, float32: of classes (h, w, classes) probabilities, what they lack to 1 being none of them; of metres (h, w);
    of unit_vectors (h, w, 3), x right, y up, z towards the camera; of probability (h, w), 0...1.
    confidence: float32 (h, w), 0...1; None where the teacher has none.
    """

    values: NDArray[np.float32]
    confidence: NDArray[np.float32] | None = None


@dataclass(frozen=True, eq=False)
class Guesses:
    """maps: by task. familiar: how much of the photo is what the teacher was taught, 0...1."""

    maps: Mapping[str, Guess]
    familiar: float = 1.0


class LabelTeacher(Protocol):
    """A network, or several, that runs on one thread."""

    def __call__(self, photo: NDArray[np.uint8]) -> Guesses:
        """What it makes of an upright RGB photo (H, W, 3)."""
        ...


@dataclass(frozen=True)
class TeacherKind:
    """One row of the table of teachers.

    tasks: that it labels. files: names of what it consists of. open: from their paths, in this order, to the teacher;
    raises CheckpointError for damaged ones. modules: what it imports beside training's own, with what pip calls it.
    """

    tasks: tuple[str, ...]
    files: tuple[str, ...]
    open: Callable[..., LabelTeacher]
    modules: Mapping[str, str]
