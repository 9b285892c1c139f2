"""How good are the served maps? Every photo of a split through the predictor, beside predictors that do not look.

Maps are compared at the labels' own size, as a client gets them. The trivial predictors: the best constant of the
training set, and the training set's mean map (majority class, mean depth, mean normal, mean mask) a pixel.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from benchmarks.measurement import Measurement
from export.accuracy import chosen, served_figures
from ptsa_serve.predictor import Predictor
from ptsa_serve.tasks import Kind, Task
from training.data.labels import labelled, nearest
from training.data.opening import check_labels, open_set
from training.data.photoset import PhotoSet
from training.scoring.metrics import metric_for

__all__ = ["measure_accuracy", "measure_trivial"]


def measure_accuracy(predictor: Predictor, *, name: str, root: Path, split: str, limit: int = 0) -> Measurement:
    """Figures of the artifact on one data set, None where no photo had a label. The photo files' own bytes go in.

    Raises as `served_figures`, and TrainingError or OSError for a data set that cannot be opened.
    """
    data = open_set(name, root, split)
    found = served_figures(predictor, data, limit)
    figures = {f"{task}_{k}": v for task, values in found.items() for k, v in values.items()}
    return Measurement(
        f"How good are the served maps on {name}/{split}?",
        figures,
        {"data": name, "split": split, "photos": len(chosen(data, limit))},
    )


def measure_trivial(*, name: str, root: Path, split: str) -> Measurement:
    """Figures of the best constant and of the mean map. Raises ValueError or OSError for data that cannot be used."""
    train, data = open_set(name, root, "train"), open_set(name, root, split)
    check_labels(train)
    figures = {}
    for task in (task for task in data.tasks if task in train.tasks):
        record = data.records[task]
        mean, constant = _mean_map(train, record)
        for predictor, map_ in (("constant", constant), ("mean_map", mean)):
            metric = metric_for(record, tolerance=data.tolerance)
            for index in range(len(data)):
                label = data[index].labels[task]
                metric.update(_at_size(map_, label.shape[:2], record.kind), label)
            figures |= {f"{task}_{predictor}_{k}": v for k, v in metric.compute().items()}
    return Measurement(
        f"How good is not looking, on {name}/{split}?", figures, {"data": name, "split": split, "photos": len(data)}
    )


def _mean_map(train: PhotoSet, task: Task, size: tuple[int, int] = (240, 320)) -> tuple[NDArray, NDArray]:
    """Mean label over the training photos at one size (of classes: the share of each), a pixel and over all pixels.

    Only pixels with a label count; a pixel that never had one gets the mean over all.
    """
    total, count = np.zeros((*size, task.channels)), np.zeros((*size, 1))
    for index in tqdm(range(len(train)), desc=f"mean {task.name}", unit="photo"):
        label = nearest(train[index].labels[task.name], size)
        rows, columns = np.nonzero(labelled(task.kind, label))
        if task.kind == "classes":
            total[rows, columns, label[rows, columns]] += 1
        else:
            total[rows, columns] += label[rows, columns].reshape(-1, task.channels)
        count[rows, columns] += 1
    constant = np.broadcast_to(total.sum((0, 1)) / count.sum(), total.shape)
    return np.where(count > 0, total / np.maximum(count, 1), constant), constant


def _at_size(mean: NDArray, size: tuple[int, ...], kind: Kind) -> NDArray:
    """The map that a trivial predictor answers for a photo of `size`."""
    finish: dict[Kind, Callable[[NDArray], NDArray]] = {
        "classes": lambda m: m.argmax(-1),
        "metres": lambda m: m[..., 0],
        "unit_vectors": lambda m: m / np.maximum(np.linalg.norm(m, axis=-1, keepdims=True), 1e-9),
        "probability": lambda m: m[..., 0],
        "boundary": lambda m: m[..., 0],
    }
    if mean.shape[:2] != size:
        planes = [
            np.asarray(Image.fromarray(np.ascontiguousarray(plane, np.float32)).resize((size[1], size[0]), 2))
            for plane in np.moveaxis(mean, -1, 0)
        ]
        mean = np.stack(planes, -1)
    return finish[kind](mean)
