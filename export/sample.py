"""The photo that ships in an artifact and the maps that an engine must reproduce on it."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from export.errors import ExportError
from export.photos import check_photo
from ptsa_serve.artifact import ArtifactFile
from ptsa_serve.images import ImageLimits, inspect
from ptsa_serve.predictor import Predictor
from ptsa_serve.tasks import Kind

__all__ = ["coarse", "round_mantissa", "sample_maps", "sample_photo"]


def sample_photo(path: Path) -> ArtifactFile:
    """The file of the sample photo. Raises ExportError if it is no JPEG, or damaged."""
    check_photo(path)
    data = path.read_bytes()
    if (found := inspect(data, ImageLimits()).format) != "JPEG":
        raise ExportError(f"{path} is {found}; the sample photo must be a JPEG")
    return ArtifactFile("sample.jpg", "sample-photo", data)


def sample_maps(predictor: Predictor, files: Sequence[ArtifactFile]) -> ArtifactFile:
    """The file of maps, at model size, that `predictor` gives for the sample photo among `files`."""
    (photo,) = (file.data for file in files if file.role == "sample-photo")
    (maps,) = predictor.run([predictor.prepare(photo)])
    buffer = io.BytesIO()
    arrays = {name: coarse(values, predictor.tasks[name].kind) for name, values in maps.items()}
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return ArtifactFile("sample.npz", "sample-maps", buffer.getvalue())


def coarse(values: np.ndarray, kind: Kind) -> np.ndarray:
    """A map with few different values, which compresses well; shape and dtype stay.

    metres are off by 0.4 % at most, unit vectors, probabilities and boundaries by 0.004, classes not at all: less than
    half of what readiness allows (`Predictor.verify`).
    """
    match kind:
        case "classes":
            return values
        case "metres":
            return round_mantissa(values, bits=7)
        case "unit_vectors" | "probability" | "boundary":
            return np.round(values * np.float32(128)) / np.float32(128)


def round_mantissa(values: np.ndarray, *, bits: int) -> np.ndarray:
    """float32 `values` with `bits` of the mantissa's 23, rounded: a relative error of at most 2 ** -(bits + 1)."""
    drop = 23 - bits
    raised = values.view(np.uint32).astype(np.uint64) + (1 << (drop - 1))
    return (raised >> drop << drop).astype(np.uint32).view(np.float32)
