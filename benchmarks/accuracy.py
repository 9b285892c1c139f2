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
from ptsa_serve.predictor import Predictor
from ptsa_serve.tasks import TASKS
from training.data import DATASETS
from training.data.labels import LabelledPhoto
from training.data.transforms import nearest
from training.metrics import metric_for

__all__ = ["measure_accuracy", "measure_trivial"]


def measure_accuracy(predictor: Predictor, *, name: str, root: Path, split: str, limit: int = 0) -> Measurement:
    """Figures of the artifact on one data set. The photo files' own bytes go in."""
    data = DATASETS[name](root, split)
    tasks = [task for task in data.tasks if task in predictor.tasks]
    metrics = {task: metric_for(TASKS[task]) for task in tasks}
    indices = range(0, len(data), max(1, len(data) // limit) if limit else 1)
    for index in tqdm(indices, desc=f"{name}/{split}", unit="photo"):
        sample = data[index]
        prediction = predictor.predict(data.photo_path(index).read_bytes(), tasks=tasks)
        for task in tasks:
            metrics[task].update(prediction.maps[task], sample.labels[task])
    figures = {f"{task}_{k}": v for task in tasks for k, v in metrics[task].compute().items()}
    return Measurement(
        f"How good are the served maps on {name}/{split}?",
        figures,
        {"data": name, "split": split, "photos": len(indices)},
    )


def measure_trivial(*, name: str, root: Path, split: str) -> Measurement:
    """Figures of the best constant and of the mean map."""
    train, data = DATASETS[name](root, "train"), DATASETS[name](root, split)
    figures = {}
    for task in data.tasks:
        mean = _mean_map(train, task)
        constant = _constant(mean, task)
        for predictor, map_ in (("constant", constant), ("mean_map", mean)):
            metric = metric_for(TASKS[task])
            for index in range(len(data)):
                label = data[index].labels[task]
                metric.update(_at_size(map_, label.shape[:2], task), label)
            figures |= {f"{task}_{predictor}_{k}": v for k, v in metric.compute().items()}
    return Measurement(
        f"How good is not looking, on {name}/{split}?", figures, {"data": name, "split": split, "photos": len(data)}
    )


def _mean_map(train, task: str, size: tuple[int, int] = (240, 320)) -> NDArray:
    """Sum over the training photos at one size: votes a class, or means."""
    total: NDArray = np.zeros((*size, 39 if task == "segmentation" else 3 if task == "normals" else 1))
    for index in tqdm(range(len(train)), desc=f"mean {task}", unit="photo"):
        sample: LabelledPhoto = train[index]
        label = nearest(sample.labels[task], size)
        if task == "segmentation":
            rows, columns = np.nonzero(label < 39)
            total[rows, columns, label[rows, columns]] += 1
        else:
            total += label.reshape(*size, -1)
    return total if task == "segmentation" else total / len(train)


def _constant(mean: NDArray, task: str) -> NDArray:
    return np.broadcast_to(mean.mean((0, 1)), mean.shape)


def _at_size(mean: NDArray, size: tuple[int, ...], task: str) -> NDArray:
    """The map that a trivial predictor answers for a photo of `size`."""
    finish: dict[str, Callable[[NDArray], NDArray]] = {
        "segmentation": lambda m: m.argmax(-1),
        "depth": lambda m: m[..., 0],
        "normals": lambda m: m / np.maximum(np.linalg.norm(m, axis=-1, keepdims=True), 1e-9),
        "saliency": lambda m: m[..., 0],
    }
    if mean.shape[:2] != size:
        planes = [
            np.asarray(Image.fromarray(np.ascontiguousarray(plane, np.float32)).resize((size[1], size[0]), 2))
            for plane in np.moveaxis(mean, -1, 0)
        ]
        mean = np.stack(planes, -1)
    return finish[task](mean)
