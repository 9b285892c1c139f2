"""How good maps are that a predictor answers: each task's own metric on the labelled photos of a data set."""

from tqdm import tqdm

from ptsa_serve.predictor import Predictor
from training.data.photoset import PhotoSet
from training.data.records import shared_tasks
from training.errors import ConfigError
from training.scoring.metrics import Figures, metric_for

__all__ = ["chosen", "served_figures"]


def chosen(data: PhotoSet, limit: int) -> range:
    """The photos of `data` that are measured: about `limit`, evenly spread; 0: all."""
    return range(0, len(data), max(1, len(data) // limit) if limit else 1)


def served_figures(predictor: Predictor, data: PhotoSet, limit: int = 0) -> dict[str, Figures]:
    """Task -> figure -> value, None where no photo had a label; at the labels' own size, as a client gets the maps.

    The photo files' own bytes go in. Raises TrainingError if the model answers none of the data set's tasks, that or
    OSError for data that cannot be used, PTSAError for a photo that the server would refuse.
    """
    tasks = shared_tasks(data.records, predictor.tasks)
    if not tasks:
        raise ConfigError(
            f"{data.name} has labels of {', '.join(data.tasks)}, the model answers {', '.join(predictor.tasks)}; "
            "measure it on another data set"
        )
    metrics = {task: metric_for(predictor.tasks[task], tolerance=data.tolerance) for task in tasks}
    for index in tqdm(chosen(data, limit), desc=data.name, unit="photo", leave=False, disable=None):
        sample = data[index]
        prediction = predictor.predict(data.photo_path(index).read_bytes(), tasks=tasks)
        for task in tasks:
            metrics[task].update(prediction.maps[task], sample.labels[task])
    return {task: metric.compute() for task, metric in metrics.items()}
