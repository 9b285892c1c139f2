"""A photo as another camera at the same place would have taken it: turned, or with a longer lens.

A turn about the camera's centre changes a picture by a homography alone, whatever the scene (Hartley and Zisserman,
Multiple View Geometry, 8.4), so depth and normals of the turned view are known exactly.
"""

from dataclasses import replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from training.data.labels import LABELS, LabelledPhoto

__all__ = ["rays", "spin", "turn"]

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
    image = cv2.warpPerspective(sample.image, homography, (width, height), borderMode=cv2.BORDER_REFLECT_101)
    return replace(sample, image=image, labels=_warped(sample, homography, vectors, nearness))


def spin(sample: LabelledPhoto, *, angle: float, scale: float) -> LabelledPhoto:
    """The photo turned anticlockwise by `angle` (radians) about its middle and made `scale` times as large, cut off.

    As MTLoRA's loaders do it: black where there was nothing, bicubic, depth divided by the scale, normals turned with
    the picture and no more. Unlike theirs, what is black has no label (there it is class 0), normals are not averaged,
    and the middle is that of the pixels (there half a pixel off).
    """
    height, width = sample.image.shape[:2]
    sine, cosine = np.sin(angle), np.cos(angle)
    to_middle = np.array([[1, 0, (1 - width) / 2], [0, 1, (1 - height) / 2], [0, 0, 1]])
    about_middle = np.array([[scale * cosine, scale * sine, 0], [-scale * sine, scale * cosine, 0], [0, 0, 1]])
    homography = np.linalg.inv(to_middle) @ about_middle @ to_middle
    vectors = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])  # the picture's y is down, theirs up
    image = cv2.warpPerspective(sample.image, homography, (width, height), flags=cv2.INTER_CUBIC)
    return replace(sample, image=image, labels=_warped(sample, homography, vectors, 1 / scale))


def _warped(sample: LabelledPhoto, homography: NDArray, vectors: NDArray, nearness: Any) -> dict[str, NDArray]:
    """The labels as another camera sees them, see `LabelKind.seen`; none where the old one saw nothing."""
    height, width = sample.image.shape[:2]
    labels = {}
    for task, label in sample.labels.items():
        kind = LABELS[sample.kinds[task]]
        seen = kind.seen(label, vectors, nearness)
        fill = (kind.nothing,) * 3
        labels[task] = cv2.warpPerspective(seen, homography, (width, height), flags=cv2.INTER_NEAREST, borderValue=fill)
    return labels


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
