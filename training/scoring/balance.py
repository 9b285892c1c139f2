"""How much each class weighs in the loss of a task of classes, from the training photos."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from training.data.labels import IGNORE
from training.data.photoset import PhotoSet
from training.scoring.losses import class_weights

__all__ = ["balance"]


def balance(sets: Mapping[str, PhotoSet], model: Any, device: torch.device) -> dict[str, Tensor]:
    """Weights of the classes, on `device`, for each task of classes.

    From the pixels of each class in the training photos of all sets that have the task: 64 a set, evenly spread, and
    each set counts alike.
    """
    shares: dict[str, Tensor] = {}
    for data in sets.values():
        for task in data.tasks:
            if task not in model.tasks or model.tasks[task].kind != "classes":
                continue
            some = range(0, len(data), max(1, len(data) // 64))
            labels = np.concatenate([data[i].labels[task].ravel() for i in some])
            pixels = torch.from_numpy(np.bincount(labels[labels != IGNORE], minlength=model.tasks[task].channels))
            shares[task] = shares.get(task, 0) + pixels / pixels.sum().clamp_min(1)
    return {task: class_weights(share).to(device) for task, share in shares.items()}
