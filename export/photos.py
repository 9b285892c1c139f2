"""Real photos for the parity gate, decoded and resized as the server does it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ptsa_serve.images import ImageLimits, decode
from ptsa_serve.resize import shrink

__all__ = ["choose_photos", "photo_at"]

_JPEG = {".jpg", ".jpeg"}


def choose_photos(paths: Sequence[Path], count: int) -> list[Path]:
    """`count` photos, evenly spread over files and the JPEGs of folders (searched recursively).

    Of folders JPEGs alone, because data sets keep labels as PNG beside the photos. Raises FileNotFoundError.
    """
    files: list[Path] = []
    for path in paths:
        found = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix.lower() in _JPEG)
        if not found:
            raise FileNotFoundError(f"{path}: no JPEG below; name photos, or a folder of them, with --photos")
        files += found
    chosen = np.linspace(0, len(files) - 1, min(count, len(files))).round().astype(int)
    return [files[index] for index in chosen]


def photo_at(path: Path, size: tuple[int, int]) -> np.ndarray:
    """The photo as uint8 (H, W, 3) of `size` (H, W), whatever its own shape. Raises as `ptsa_serve.images.decode`."""
    return shrink(decode(path.read_bytes(), ImageLimits(), at_least=size).pixels, size)
