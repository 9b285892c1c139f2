"""PASCAL in the archive of multi-task papers, PASCAL_MT of ASTMT: five tasks of the photos of PASCAL-Context.

Layout: `ImageSets/Context/{train,val}.txt` name the photos of `JPEGImages`; `semseg/VOC12/NAME.png`, and where there is
none `semseg/pascal-context/NAME.png` (0 to 20); `human_parts/NAME.mat` (PASCAL-Part); `normals_distill/NAME.png` and
`sal_distill/NAME.png`, made by networks; `pascal-context/trainval/NAME.mat`, 459 classes, of which the edges are the
ends, and which say where the normals count. Folders of labels, and labels of single photos, may be missing. Nothing is
written beside them.
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptsa_serve.resize import nearest
from ptsa_serve.tasks import TASKS, Task
from training.data.archives import axes_note, find_axes, labels_in, listed, mask
from training.data.arrays import fitted, read_mat
from training.data.evenly import evenly
from training.data.files import read_classes, read_grey, read_vectors, unit_vectors
from training.data.labels import IGNORE
from training.data.pascal_tables import FLOORS, HUMAN_PARTS, PARTS, SEGMENTATION, WITH_NORMALS
from training.data.photoset import PhotoSet, files_by_name
from training.data.records import EDGES
from training.errors import DataError
from training.scoring.boundaries import class_boundaries

__all__ = ["Pascal"]

_PERSON = 15  # of the VOC classes
_LOOK_AT = 24


class Pascal(PhotoSet):
    """`Pascal(root, split)[i]`: a photo of at most 500 a side with labels of up to five tasks.

    Normals without `pascal-context` beside them are none of the set's. Raises FileNotFoundError without a list, photos
    or labels, DataError for photos that are listed and missing.
    """

    name = "pascal"
    records: Mapping[str, Task] = {
        "segmentation": SEGMENTATION,
        "human_parts": HUMAN_PARTS,
        "saliency": TASKS["saliency"],
        "normals": TASKS["normals"],
        "edges": EDGES,
    }
    size = (448, 448)  # photos lie and stand

    def __init__(self, root: Path, split: str) -> None:
        root = Path(root)
        photos = listed(root / "ImageSets/Context" / f"{split}.txt", files_by_name(root / "JPEGImages"))
        context = labels_in(root / "pascal-context/trainval", (".mat",))
        normals = labels_in(root / "normals_distill", (".png",))
        labels = {
            "segmentation": labels_in(root / "semseg/pascal-context", (".png",))
            | labels_in(root / "semseg/VOC12", (".png",)),
            "human_parts": labels_in(root / "human_parts", (".mat",)),
            "saliency": labels_in(root / "sal_distill", (".png",)),
            "normals": {name: path for name, path in normals.items() if name in context},
            "edges": context,
        }
        labels = {t: {n: path for n, path in files.items() if n in photos} for t, files in labels.items()}
        labels = {task: files for task, files in labels.items() if files}
        if not labels:
            raise FileNotFoundError(f"{root}: photos without any labels; expected semseg, human_parts, ... beside them")
        super().__init__(photos, labels)
        self._context = context
        self._axes = find_axes(self._floors())
        self.notes = (axes_note(self._axes),) if "normals" in labels else ()

    def read(self, task: str, path: Path, size: tuple[int, int]) -> NDArray:
        """See `PhotoSet.read`."""
        match task:
            case "segmentation":
                label = read_classes(path, None, len(SEGMENTATION.classes))
            case "human_parts":
                label = _parts(path, size)
            case "saliency":
                label = mask(read_grey(path, None, "a grey PNG, 255 where something is salient"))
            case "normals":
                vectors = unit_vectors(path, read_vectors(path, None) * np.array(self._axes.signs, np.float32))
                known = nearest(np.isin(_classes(self._context[path.stem]), WITH_NORMALS), vectors.shape[:2])
                label = np.where(known[..., None], vectors, np.float32(0))
            case _:
                label = class_boundaries(_classes(path))
        return fitted(path, label, size, self.records[task].kind)

    def _floors(self) -> Iterator[tuple[NDArray, NDArray]]:
        """Normals as stored, and where ground is, of some photos."""
        normals = self._labels.get("normals", {})
        for name in evenly([name for name in self._names if name in normals], _LOOK_AT):
            with suppress(DataError):  # of a damaged file; it is told when it is drawn
                vectors = read_vectors(normals[name], None)
                yield vectors, nearest(np.isin(_classes(self._context[name]), FLOORS), vectors.shape[:2])


def _classes(path: Path) -> NDArray:
    """PASCAL-Context's class of each pixel, (H, W). Raises OSError or DataError."""
    classes = np.asarray(read_mat(path, "LabelMap"))
    if classes.ndim != 2 or classes.dtype.kind not in "ui":
        raise DataError(f"{path}: its LabelMap is {classes.dtype} {classes.shape}; a class a pixel is wanted")
    return classes


def _parts(path: Path, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Part of a person at each pixel; nothing but "no label" for a photo in which nobody has parts.

    Raises OSError, or DataError for a file of another form or a part that is not known.
    """
    annotation = read_mat(path, "anno")
    try:
        people = [thing for thing in _many(annotation["objects"]) if int(thing["class_ind"]) == _PERSON]
        parts = [(str(part["part_name"]), np.asarray(part["mask"])) for who in people for part in _many(who["parts"])]
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise DataError(f"{path}: no objects with parts in it ({error!r}); copy it from the data set again") from None
    if not any(pixels.any() for _, pixels in parts):
        return np.full(size, IGNORE, np.uint8)
    label = np.zeros(parts[0][1].shape, np.uint8)
    for name, pixels in parts:
        if name not in PARTS or pixels.shape != label.shape:
            raise DataError(
                f"{path}: found part {name!r} of {pixels.shape} among others of {label.shape}; known are "
                f"{', '.join(PARTS)}, all of one size"
            )
        label[pixels > 0] = PARTS[name]
    return label


def _many(structs: Any) -> list[Any]:
    """The elements of a MATLAB struct array: loadmat gives one alone as it is."""
    return [structs] if isinstance(structs, dict) else list(structs)
