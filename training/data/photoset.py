"""What the labelled data sets have in common: photos in a folder, and for each task the label files that there are.

The rule for missing labels: a photo whose label file is missing has no label for that task; a task whose folder is
missing is none of the set's. `open_set` says how many photos have each label, so that a damaged copy does not pass
unnoticed; a label under a name or a suffix that no photo answers to is refused.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from pathlib import Path

from numpy.typing import NDArray
from torch.utils.data import Dataset

from ptsa_serve.images import SUFFIXES
from ptsa_serve.tasks import Kind, Task
from training.data.files import read_photo
from training.data.labels import LabelledPhoto, no_label
from training.errors import DataError

__all__ = ["PhotoSet", "files_by_name"]


class PhotoSet(Dataset[LabelledPhoto], ABC):
    """`data[i]`: a photo with a label for each of `tasks`; a label file that is missing gives a label of nothing.

    Subclasses say `name`, `size` (H, W of the model's sizes that fits the photos) and `records`, the tasks that a whole
    copy has labels of, and implement `read`. Photos and, for each task, label files are given by the photo's name.
    """

    name: str
    size: tuple[int, int]
    records: Mapping[str, Task]
    tolerance: float = 0.0075  # of the diagonal: how far off a boundary may be found (BSDS 500, PASCAL)
    splits: tuple[str, ...] = ("train", "val")
    any_shape: bool = False  # photos may have any shape, and labels a size of their own
    notes: tuple[str, ...] = ()  # what was found out about this copy, for whoever watches

    def __init__(self, photos: Mapping[str, Path], labels: Mapping[str, Mapping[str, Path]]) -> None:
        self._names = sorted(photos)
        self._photos = photos
        self._labels = labels
        self.records = {task: type(self).records[task] for task in labels}

    @property
    def tasks(self) -> tuple[str, ...]:
        """Those that this copy has labels of."""
        return tuple(self.records)

    @abstractmethod
    def read(self, task: str, path: Path, size: tuple[int, int]) -> NDArray:
        """One label file of a photo of `size` (H, W), in the form that `LabelledPhoto` describes.

        Raises OSError or DataError with the path.
        """

    def __len__(self) -> int:
        return len(self._names)

    def photo_path(self, index: int) -> Path:
        """The photo's file."""
        return self._photos[self._names[index]]

    def label_paths(self, task: str) -> list[Path]:
        """The label files of a task, in the order of the photos."""
        return [self._labels[task][name] for name in self._names if name in self._labels[task]]

    def label_path(self, task: str, index: int) -> Path | None:
        """The label file of a photo, if it has one."""
        return self._labels[task].get(self._names[index])

    def __getitem__(self, index: int) -> LabelledPhoto:
        name = self._names[index]
        image = read_photo(self._photos[name])
        size = (image.shape[0], image.shape[1])
        kinds: dict[str, Kind] = {task: record.kind for task, record in self.records.items()}
        labels = {
            task: self.read(task, files[name], size) if name in files else no_label(kinds[task], size)
            for task, files in self._labels.items()
        }
        return LabelledPhoto(name, image, labels, kinds)


def files_by_name(folder: Path, suffixes: Collection[str] = SUFFIXES) -> dict[str, Path]:
    """The files of a folder by their name without suffix; suffixes in capitals are the same, hidden files do not count.

    Raises FileNotFoundError if there is no such folder, DataError for two files of one name.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in suffixes and not path.name.startswith(".") and path.is_file():
            if path.stem in found:
                raise DataError(f"{path}: {found[path.stem].name} has the same name; keep one of them")
            found[path.stem] = path
    return found
