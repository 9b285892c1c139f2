"""What a model makes of a photo beside what it should: photo, label, prediction, in the colours of the server."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ptsa_serve.encoding.colors import colorize
from ptsa_serve.tasks import Task
from training.data.evenly import evenly
from training.data.labels import labelled
from training.data.photoset import PhotoSet
from training.data.transforms import to_tensors
from training.network.heads import finish

__all__ = ["coloured_label", "pictures"]

WIDEST = 320  # pixels of each of the three


@torch.inference_mode()
def pictures(model: Any, data: PhotoSet, size: tuple[int, int], *, count: int = 3) -> Iterator[tuple[str, NDArray]]:
    """`task/name of the photo` and uint8 (h, 3 w, 3), for `count` photos evenly spread and each task of both.

    model: a PTSAModel in eval mode; size: (H, W) that it sees the photos at. Pixels without a label are black.
    """
    tasks = [task for task in data.tasks if task in model.tasks]
    for index in evenly(range(len(data)), count):
        photo = data[index]
        image = to_tensors(photo, size, label_size=None)["image"]
        raw = model(image[None].to(model.mean.device), tasks)
        for task in tasks:
            map_ = finish(model.tasks[task], raw[task].float(), photo.image.shape[:2])[0].cpu().numpy()
            label = coloured_label(model.tasks[task], photo.labels[task], photo.image.shape[:2])
            step = -(-photo.image.shape[1] // WIDEST)
            three = [photo.image, label, colorize(model.tasks[task], map_)]
            yield f"{task}/{photo.name}", np.concatenate([part[::step, ::step] for part in three], axis=1)


def coloured_label(task: Task, label: NDArray, size: tuple[int, int]) -> NDArray[np.uint8]:
    """A label (see `LabelledPhoto`) of a photo of `size` in colours, uint8 (H, W, 3); black where it has none."""
    valid = labelled(task.kind, label)
    if not valid.any():
        return np.zeros((*size, 3), np.uint8)
    # What has no label must not stretch the colours of what has one.
    filled = np.where(valid, label, np.median(label[valid])) if task.kind == "metres" else label
    dtype = np.uint8 if task.kind == "classes" else np.float32
    colours = colorize(task, np.ascontiguousarray(filled.astype(dtype)))
    return np.where(valid[..., None], colours, 0).astype(np.uint8)
