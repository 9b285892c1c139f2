"""A photo as another camera at the same place would have taken it: turned, and with a longer lens.

A turn about the camera's centre changes a picture by a homography alone, whatever the scene (Hartley and Zisserman,
Multiple View Geometry, 8.4), so depth and normals of the turned view are known exactly.
"""

from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray

from training.data.labels import LABELS, LabelledPhoto

__all__ = ["rays", "turn"]

# Focal length over the longer side: of NYU Depth v2's camera, 259.6 of 320 pixels. Other sets have no geometric labels.
FOCAL = 0.81

# Stored normals have y up and z towards the camera, its own axes y down and z forward.
_STORED = np.diag([1, -1, -1])


def turn(sample: LabelledPhoto, *, pan: float, tilt: float, roll: float, zoom: float) -> LabelledPhoto:
    """The view of a camera turned right by `pan`, up by `tilt`, clockwise by `roll` (radians), `zoom` times as long.

    Nobody who sees only the picture knows the lens, so labels are those of the old lens: the scene stands `zoom` times
    nearer, and all of it is that much shallower; normals turn with its surfaces. Where the old camera saw nothing the
    photo is mirrored and labels are missing. Sizes stay; labels are never averaged.
    """
    height, width = sample.image.shape[:2]
    rotation = _rotation(pan, tilt, roll)
    lens = _lens(height, width)
    homography = lens @ np.diag([zoom, zoom, 1]) @ rotation @ np.linalg.inv(lens)
    # Planes n·X = d keep n·X when z shrinks and n's z grows.
    vectors = np.diag([1, 1, zoom]) @ _STORED @ rotation @ _STORED
    nearness = rays(height, width) @ rotation[2] / zoom
    size = (width, height)
    image = cv2.warpPerspective(sample.image, homography, size, borderMode=cv2.BORDER_REFLECT_101)
    labels = {}
    for task, label in sample.labels.items():
        kind = LABELS[sample.kinds[task]]
        labels[task] = cv2.warpPerspective(
            kind.seen(label, vectors, nearness),
            homography,
            size,
            flags=cv2.INTER_NEAREST,
            borderValue=(kind.nothing,) * 3,
        )
    return replace(sample, image=image, labels=labels)


def rays(height: int, width: int) -> NDArray[np.float64]:
    """(H, W, 3): where each pixel looks, x right, y down, z = 1 forward."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return np.stack([x, y, np.ones_like(x)], -1) @ np.linalg.inv(_lens(height, width)).T


def _lens(height: int, width: int) -> NDArray[np.float64]:
    focal = FOCAL * max(height, width)
    return np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]])


def _rotation(pan: float, tilt: float, roll: float) -> NDArray[np.float64]:
    """From the old camera's axes (x right, y down, z forward) to the new one's."""
    (sp, st, sr), (cp, ct, cr) = np.sin([pan, tilt, roll]), np.cos([pan, tilt, roll])
    about_y = np.array([[cp, 0, -sp], [0, 1, 0], [sp, 0, cp]])
    about_x = np.array([[1, 0, 0], [0, ct, st], [0, -st, ct]])
    about_z = np.array([[cr, sr, 0], [-sr, cr, 0], [0, 0, 1]])
    return about_z @ about_x @ about_y
