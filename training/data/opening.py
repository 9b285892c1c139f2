"""Open a data set by its name and say what is in it, before anything is computed from it."""

import sys
from pathlib import Path

from tqdm import tqdm

from training.data import DATASETS
from training.data.evenly import evenly
from training.data.labels import labelled
from training.data.photoset import PhotoSet
from training.errors import DataError

__all__ = ["LOOK_AT", "check_labels", "open_set"]

LOOK_AT = 2000  # about 15 seconds


def open_set(name: str, root: Path, split: str) -> PhotoSet:
    """A split of a data set; a line on the standard error says how many photos have each label.

    Raises DataError for a set that is not known, and what the set itself raises.
    """
    if name not in DATASETS:
        raise DataError(f"data set {name!r} is unknown; known are {', '.join(DATASETS)}")
    data = DATASETS[name](root, split)
    labels = ", ".join(
        f"{task} {len(data.label_paths(task)) if task in data.tasks else 0}" for task in DATASETS[name].records
    )
    sys.stderr.write(f"{name}/{split}: {len(data)} photos; with labels of {labels}\n")
    sys.stderr.writelines(f"{name}/{split}: {line}\n" for line in data.notes)
    return data


def check_labels(data: PhotoSet) -> None:
    """Read photos and labels once, so that a wrong file stops a training before its first step.

    Raises DataError for a task without one labelled pixel, and what reading a photo raises. Of more than `LOOK_AT`
    photos so many are read, evenly spread; the others are checked when they are drawn.
    """
    labels = dict.fromkeys(data.tasks, 0)
    indices = evenly(range(len(data)), LOOK_AT)
    for index in tqdm(indices, desc=f"check {data.name}", unit="photo", disable=None):
        for task, label in data[index].labels.items():
            labels[task] += bool(labelled(data.records[task].kind, label).any())
    for task, count in labels.items():
        if not count:
            raise DataError(
                f"{data.label_paths(task)[0]}: no pixel has a label, nor has any of {task} in {len(indices)} photos; "
                f"are they the right files? Remove them to train without {task}"
            )
