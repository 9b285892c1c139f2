"""What the two standard archives have in common: text files that list the photos of a split, masks, and normals whose
axes no document tells.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.data.photoset import files_by_name
from training.errors import DataError

__all__ = ["Axes", "axes_note", "find_axes", "labels_in", "listed", "mask"]


def listed(path: Path, photos: Mapping[str, Path]) -> dict[str, Path]:
    """The photos that the lines of a text file name.

    Raises FileNotFoundError without the file, DataError for photos that are missing.
    """
    if not path.is_file():
        found = ", ".join(sorted(other.name for other in path.parent.glob("*.txt"))) or "nothing"
        raise FileNotFoundError(f"{path}: no such list of photos; {path.parent} holds {found}")
    try:
        names = path.read_text("utf-8").split()
    except UnicodeDecodeError:
        raise DataError(f"{path}: no text; copy it from the data set again") from None
    if not names:
        raise DataError(f"{path}: it names no photo; copy it from the data set again")
    if missing := [name for name in names if name not in photos]:
        raise DataError(
            f"{path}: {len(missing)} of the {len(names)} photos that it names are missing, first {missing[0]}; copy "
            "them from the data set again, or take them off the list"
        )
    return {name: photos[name] for name in names}


def labels_in(folder: Path, endings: Collection[str]) -> dict[str, Path]:
    """The label files of a folder by their photo's name, none if there is no such folder.

    Raises FileNotFoundError if it is there and holds none, DataError for two files of one name.
    """
    if not folder.is_dir():
        return {}
    if found := files_by_name(folder, endings):
        return found
    raise FileNotFoundError(
        f"{folder}: no file in it ends in {' or '.join(endings)}; put labels there that do, or remove the folder to "
        "train without them"
    )


def mask(values: NDArray) -> NDArray[np.uint8]:
    """1 above one half and 0 below, for numbers up to 1, or of 8 bits up to 255."""
    return (values > (127.5 if values.max(initial=0) > 1 else 0.5)).astype(np.uint8)


@dataclass(frozen=True)
class Axes:
    """Which way a set's normals count. signs: what x, y, z are multiplied by. floors: photos that told."""

    signs: tuple[int, int, int] = (1, 1, 1)
    floors: int = 0


def find_axes(seen: Iterable[tuple[NDArray, NDArray]]) -> Axes:
    """The axes of normals, from some photos' normals (H, W, 3) as stored and where their floors are, (H, W).

    Floors look up, and what is seen looks at the camera. Without a floor y counts as up.
    """
    up, near = [], []
    for normals, floor in seen:
        near.append(float(normals[..., 2].mean()))
        if floor.any():
            up.append(float(normals[floor, 1].mean()))
    return Axes((1, -1 if sum(up) < 0 else 1, -1 if sum(near) < 0 else 1), len(up))


def axes_note(axes: Axes) -> str:
    """A line for whoever watches."""
    _, up, near = axes.signs
    told = f"{axes.floors} photos with a floor tell" if axes.floors else "no floor is labelled to tell: taken as that"
    y, z = "up" if up > 0 else "down, turned up on reading", "towards" if near > 0 else "away from"
    turned = "" if near > 0 else ", turned around on reading"
    return f"normals: y is {y} ({told}); z points {z} the camera{turned}"
