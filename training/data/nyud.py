"""NYU Depth v2 in the archives of multi-task papers: 40 classes, depth, normals and edges at full size.

Layout: `gt_sets/{train,val}.txt` name the photos; `images/NAME.{jpg,png}`, `segmentation/NAME.png` (0 = none, 1 to
40), `depth/NAME.npy`, `normals/NAME.{npy,png}`, `edge/NAME.{npy,png}`. Two archives are about, NYUD_MT of ASTMT and
MTI-Net (.jpg and .npy) and that of InvPT (.png); each file is read as what it is. Folders of labels, and labels of
single photos, may be missing.
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ptsa_serve.resize import nearest
from ptsa_serve.tasks import TASKS, Task
from training.data.archives import axes_note, find_axes, labels_in, listed, mask
from training.data.arrays import fitted, read_array
from training.data.evenly import evenly
from training.data.files import plausible, read_classes, read_grey, read_vectors, unit_vectors
from training.data.photoset import PhotoSet, files_by_name
from training.data.records import EDGES
from training.errors import DataError

__all__ = ["NYUD"]

_NYU39 = TASKS["segmentation"]
_FLOOR = 1  # among the classes

# Folders of a task, the first that is there, and how its files end.
_PLACES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "segmentation": (("segmentation",), (".png",)),
    "depth": (("depth",), (".npy",)),
    "normals": (("normals",), (".npy", ".png")),
    "edges": (("edge", "edges"), (".npy", ".png")),
}
# A room is metres deep and thousands of millimetres: a median above this is no number of metres.
_NOT_METRES = 100
_LOOK_AT = 24
_EDGES = "a grey PNG, 255 on edges and 0 elsewhere"


class NYUD(PhotoSet):
    """`NYUD(root, split)[i]`: a photo of 640 x 480 or 560 x 425 with labels of up to four tasks.

    Depth may be metres or millimetres, normals may have y down or z away from the camera: found from the files, said in
    `notes`, and turned into this project's units. Raises FileNotFoundError without a list, photos or labels, DataError
    for photos that are listed and missing.
    """

    name = "nyud"
    records: Mapping[str, Task] = {
        "segmentation": replace(
            _NYU39,
            channels=40,
            classes=(*_NYU39.classes, "otherprop"),
            colors=(*_NYU39.colors, (75, 0, 130)),
        ),
        "depth": TASKS["depth"],
        "normals": TASKS["normals"],
        "edges": EDGES,
    }
    size = (384, 512)
    tolerance = 0.011  # of boundaries on this set (as ATRC and InvPT, and before them HED, have it)

    def __init__(self, root: Path, split: str) -> None:
        root = Path(root)
        photos = listed(root / "gt_sets" / f"{split}.txt", files_by_name(root / "images"))
        labels = {}
        for task, (folders, endings) in _PLACES.items():
            if folder := next((root / name for name in folders if (root / name).is_dir()), None):
                labels[task] = {n: path for n, path in labels_in(folder, endings).items() if n in photos}
        labels = {task: files for task, files in labels.items() if files}
        if not labels:
            raise FileNotFoundError(f"{root}: photos without any labels; expected {', '.join(_PLACES)} beside images")
        super().__init__(photos, labels)
        self._millimetres = self._first_unit() if "depth" in labels else False
        self._axes = find_axes(self._floors())
        unit = f"depth: the files hold {'millimetres' if self._millimetres else 'metres'}"
        found = {"depth": unit, "normals": axes_note(self._axes)}
        self.notes = tuple(note for task, note in found.items() if task in labels)

    def read(self, task: str, path: Path, size: tuple[int, int]) -> NDArray:
        """See `PhotoSet.read`. Raises DataError for depth of another unit than the set's first file, too."""
        match task:
            case "segmentation":
                label = read_classes(path, None, 40, first=1)
            case "depth":
                label = self._depth(path)
            case "normals":
                label = unit_vectors(path, _vectors(path) * np.array(self._axes.signs, np.float32))
            case _:
                label = mask(read_array(path) if path.suffix.lower() == ".npy" else read_grey(path, None, _EDGES))
        return fitted(path, label, size, self.records[task].kind)

    def _depth(self, path: Path) -> NDArray[np.float32]:
        stored = _depths(path)
        millimetres = _in_millimetres(stored)
        if millimetres not in (None, self._millimetres):
            found, others = ("millimetres", "metres") if millimetres else ("metres", "millimetres")
            raise DataError(
                f"{path}: its depths are {found}, those of {self.label_paths('depth')[0].name} are {others}; a set has "
                "one unit: convert the files that have the other"
            )
        metres = stored / np.float32(1000 if self._millimetres else 1)
        plausible(path, metres, stored, "millimetres" if self._millimetres else "metres")
        return metres

    def _first_unit(self) -> bool:
        """Whether the first depth file that has a value holds millimetres."""
        for path in self.label_paths("depth"):
            with suppress(DataError):  # of a damaged file; it is told when it is drawn
                if (unit := _in_millimetres(_depths(path))) is not None:
                    return unit
        return False

    def _floors(self) -> Iterator[tuple[NDArray, NDArray]]:
        """Normals as stored, and where the floor is, of some photos."""
        both = [self._labels.get(task, {}) for task in ("normals", "segmentation")]
        for name in evenly([name for name in self._names if all(name in files for files in both)], _LOOK_AT):
            with suppress(DataError):
                vectors, classes = _vectors(both[0][name]), read_classes(both[1][name], None, 40, first=1)
                yield vectors, nearest(classes, vectors.shape[:2]) == _FLOOR


def _depths(path: Path) -> NDArray[np.float32]:
    """As stored, (H, W); 0 where there is no number. Raises OSError, or DataError for negative ones."""
    stored = read_array(path).astype(np.float32)
    if (negative := stored[stored < 0]).size:
        raise DataError(f"{path}: found the depth {negative[0]:g}; allowed are numbers above 0, and 0 for none")
    return np.where(np.isfinite(stored), stored, np.float32(0))


def _in_millimetres(stored: NDArray[np.float32]) -> bool | None:
    """None where nothing is labelled."""
    known = stored[stored > 0]
    return bool(np.median(known) > _NOT_METRES) if len(known) else None


def _vectors(path: Path) -> NDArray[np.float32]:
    """Normals as stored, (H, W, 3)."""
    if path.suffix.lower() == ".png":
        return read_vectors(path, None)
    return np.nan_to_num(read_array(path, 3).astype(np.float32), posinf=0, neginf=0)
