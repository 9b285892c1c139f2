"""A page to look at: photos with their labels, in the colours of the server."""

import io

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ptsa_serve.tasks import Task
from training.data.evenly import evenly
from training.data.labels import labelled
from training.data.photoset import PhotoSet
from training.running.pictures import coloured_label

__all__ = ["sheet"]

_CELL = (180, 240)  # height and width of a picture
_GAP = 4
_NOTHING = 110  # black is what is not salient
_QUALITY = 88


def sheet(data: PhotoSet, count: int) -> bytes:
    """JPEG: `count` photos, evenly spread, a row each, beside it a label of each task; grey where there is none."""
    rows = []
    for index in evenly(range(len(data)), count):
        photo = data[index]
        size = (photo.image.shape[0], photo.image.shape[1])
        labels = [_coloured(data.records[task], label, size) for task, label in photo.labels.items()]
        rows.append(np.concatenate([_cell(picture) for picture in (photo.image, *labels)], axis=1))
    file = io.BytesIO()
    Image.fromarray(np.concatenate(rows)).save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()


def _coloured(task: Task, label: NDArray, size: tuple[int, int]) -> NDArray[np.uint8]:
    return np.where(labelled(task.kind, label)[..., None], coloured_label(task, label, size), np.uint8(_NOTHING))


def _cell(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """In the middle of a cell, on white."""
    height, width = picture.shape[:2]
    scale = min(_CELL[0] / height, _CELL[1] / width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    cell = np.full((_CELL[0] + _GAP, _CELL[1] + _GAP, 3), 255, np.uint8)
    top, left = (_CELL[0] - size[1]) // 2, (_CELL[1] - size[0]) // 2
    cell[top : top + size[1], left : left + size[0]] = small
    return cell
