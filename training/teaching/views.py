"""Views of a labelled photo: as it is, as turned cameras see it, and in another light."""

from dataclasses import replace

import numpy as np

from training.data.camera import turn
from training.data.labels import LabelledPhoto

__all__ = ["view"]

_TURN = 8.0  # degrees of pan, tilt and roll at most
_ZOOM = 1.4
_GAMMA = (0.7, 1.3)


def view(photo: LabelledPhoto, number: int, key: tuple[int, ...]) -> LabelledPhoto:
    """View 0 is the photo; the others depend on their number and `key` alone, odd ones in a light of their own."""
    if not number:
        return photo
    rng = np.random.default_rng((number, *key))
    pan, tilt, roll = np.radians(rng.uniform(-_TURN, _TURN, 3))
    seen = turn(photo, pan=pan, tilt=tilt, roll=roll, zoom=float(np.exp(rng.uniform(0, np.log(_ZOOM)))))
    if number % 2 == 0:
        return seen
    lit = (seen.image / 255.0) ** rng.uniform(*_GAMMA)
    return replace(seen, image=np.rint(255 * lit).astype(np.uint8))
