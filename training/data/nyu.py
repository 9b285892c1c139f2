"""NYU Depth v2, labelled set (Silberman et al., ECCV 2012): segmentation, depth and normals of indoor photos.

Layout: `{train,val}/{image,depth,normals,segmentation}/NNNN.{jpg,png,jpg,png}`, see the README of the data. Any of the
three folders of labels, and labels of single photos, may be missing.
"""

from collections.abc import Mapping
from pathlib import Path

from numpy.typing import NDArray

from ptsa_serve.images import SUFFIXES
from ptsa_serve.tasks import TASKS, Kind, Task
from training.data.files import read_classes, read_metres, read_unit_vectors
from training.data.photoset import PhotoSet, files_by_name
from training.errors import DataError

__all__ = ["NYU"]

_ENDINGS: dict[Kind, tuple[str, ...]] = {
    "classes": (".png",),
    "metres": (".png",),
    "unit_vectors": (".jpg", ".jpeg", ".png"),
    "probability": (".png",),
}


class NYU(PhotoSet):
    """`NYU(root, split)[i]`: a photo of 320 x 240 with labels of up to three tasks.

    Raises FileNotFoundError without photos or labels, DataError for label files that belong to no photo.
    """

    name = "nyu"
    records: Mapping[str, Task] = {task: TASKS[task] for task in ("segmentation", "depth", "normals")}
    size = (384, 512)  # of the model's sizes, the one nearest to these photos' aspect ratio

    def __init__(self, root: Path, split: str) -> None:
        folder = Path(root) / split
        records = type(self).records
        layout = f"expected {split}/{{{','.join(('image', *sorted(records)))}}}/NNNN"
        photos = files_by_name(folder / "image") if (folder / "image").is_dir() else {}
        if not photos:
            raise FileNotFoundError(f"{folder / 'image'}: no photos; {layout}")
        labels = {
            task: _labels(folder / task, record, photos) for task, record in records.items() if (folder / task).exists()
        }
        if not labels:
            raise FileNotFoundError(f"{folder}: photos without any labels; {layout}")
        super().__init__(photos, labels)

    def read(self, task: str, path: Path, size: tuple[int, int] | None) -> NDArray:
        """See `PhotoSet.read`; without a size, whatever size it has."""
        record = self.records[task]
        match record.kind:
            case "metres":
                return read_metres(path, size)
            case "unit_vectors":
                return read_unit_vectors(path, size)
            case "probability":
                return read_classes(path, size, 2)
            case _:
                return read_classes(path, size, record.channels)


def _labels(folder: Path, task: Task, photos: dict[str, Path]) -> dict[str, Path]:
    """The label files of a task, each of a photo. Raises DataError for others."""
    allowed = _ENDINGS[task.kind]
    found = files_by_name(folder, (*SUFFIXES, ".npy", ".npz", ".mat", ".exr"))
    for name, path in found.items():
        if path.suffix.lower() not in allowed:
            raise DataError(f"{path}: labels of {task.name} are {' or '.join(allowed)} files; convert it or remove it")
        if name not in photos:
            raise DataError(f"{path}: there is no photo {name} in image/; copy it too, or remove its label")
    if not found:
        raise FileNotFoundError(
            f"{folder}: no labels; put {task.name} files ({' or '.join(allowed)}) there that are named as their "
            f"photos, or remove the folder to train without {task.name}"
        )
    return found
