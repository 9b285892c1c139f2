"""Labels as arrays: NumPy's .npy and MATLAB's .mat, read without ever running what a file may hold."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
from numpy.typing import NDArray

from ptsa_serve.tasks import Kind
from training.data.labels import LABELS
from training.errors import DataError

__all__ = ["fitted", "read_array", "read_mat"]

# Sides of a label may be rounded when an archive is made smaller; a label that was turned or cut is off by more.
_ASPECT = 0.02


def read_array(path: Path, channels: int | None = None) -> NDArray:
    """The numbers (H, W), or (H, W, channels), of an .npy file; a last axis of 1 is dropped.

    Raises OSError, or DataError for a damaged file, pickled objects, or an array of another form.
    """
    try:
        with path.open("rb") as file:
            values = np.lib.format.read_array(file, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise DataError(f"{path}: no array of numbers ({error}); copy it from the data set again") from None
    if channels is None and values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    axes = values.shape[2:] if values.ndim > 2 else ()
    if values.dtype.kind not in "buif" or values.ndim < 2 or axes != (() if channels is None else (channels,)):
        form = "H x W" if channels is None else f"H x W x {channels}"
        raise DataError(f"{path}: found {values.dtype} {values.shape}; a label is numbers {form}")
    return values


def read_mat(path: Path, key: str) -> Any:
    """What `key` holds in a MATLAB file (up to version 7.2), structs as dicts. Raises OSError or DataError."""
    data = path.read_bytes()
    try:
        content = scipy.io.loadmat(io.BytesIO(data), simplify_cells=True, variable_names=[key])
    except NotImplementedError:
        raise DataError(f"{path}: a MATLAB file of version 7.3; save it again with -v7") from None
    except Exception as error:  # SciPy does not say what damage raises
        raise DataError(f"{path}: the file is damaged ({error}); copy it from the data set again") from None
    if key not in content:
        raise DataError(f"{path}: it has no {key!r}; copy it from the data set again")
    return content[key]


def fitted(path: Path, label: NDArray, size: tuple[int, int], kind: Kind) -> NDArray:
    """A label at its photo's `size` (H, W): archives hold some at another scale.

    Raises DataError for another aspect ratio: the label was turned or cut, or is of another photo.
    """
    height, width = label.shape[:2]
    if abs(height * size[1] / (width * size[0]) - 1) > _ASPECT:
        raise DataError(
            f"{path}: the label is {width} x {height} pixels, its photo {size[1]} x {size[0]}, another shape; copy "
            "both from the data set again"
        )
    return label if (height, width) == size else LABELS[kind].resized(label, size)
