"""Real photos for the parity gate, decoded and resized as the server does it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from export.errors import ExportError
from ptsa_serve.errors import PTSAError
from ptsa_serve.images import ImageLimits, decode
from ptsa_serve.resize import shrink
from training.data.evenly import evenly

__all__ = ["check_photo", "choose_photos", "photo_at"]

_JPEG = {".jpg", ".jpeg"}


def choose_photos(paths: Sequence[Path], count: int) -> list[Path]:
    """`count` photos, evenly spread over files and the JPEGs of folders (searched recursively).

    Of folders JPEGs alone, because data sets keep labels as PNG beside the photos. Raises FileNotFoundError, or
    ExportError for a chosen photo that cannot be decoded.
    """
    files: list[Path] = []
    for path in paths:
        found = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix.lower() in _JPEG)
        if not found:
            raise FileNotFoundError(f"{path}: no JPEG below; name photos, or a folder of them, with --photos")
        files += found
    photos = evenly(files, count)
    for photo in photos:
        check_photo(photo)
    return photos


def check_photo(path: Path) -> None:
    """Raise ExportError, naming the file, if a photo cannot be decoded."""
    try:
        decode(path.read_bytes(), ImageLimits())
    except PTSAError as error:
        raise ExportError(f"{path}: {error}") from None


def photo_at(path: Path, size: tuple[int, int]) -> np.ndarray:
    """The photo as uint8 (H, W, 3) of `size` (H, W), whatever its own shape. Raises as `ptsa_serve.images.decode`."""
    return shrink(decode(path.read_bytes(), ImageLimits(), at_least=size).pixels, size)
