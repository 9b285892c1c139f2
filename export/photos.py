"""Real photos for the parity gate, decoded and resized as the server does it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ptsa_serve.images import ImageLimits, decode
from ptsa_serve.resize import shrink
from training.data.photos import PhotoFolder

__all__ = ["choose_photos", "photo_at"]


def choose_photos(paths: Sequence[Path], count: int) -> list[Path]:
    """`count` photos, evenly spread over files and folders (searched recursively). Raises FileNotFoundError."""
    files: list[Path] = []
    for path in paths:
        files += [path] if path.is_file() else PhotoFolder(path).files()
    if not files:
        raise FileNotFoundError("no photos to compare on; name files or folders with --photos")
    chosen = np.linspace(0, len(files) - 1, min(count, len(files))).round().astype(int)
    return [files[index] for index in chosen]


def photo_at(path: Path, size: tuple[int, int]) -> np.ndarray:
    """The photo as uint8 (H, W, 3) of `size` (H, W), whatever its own shape. Raises as `ptsa_serve.images.decode`."""
    return shrink(decode(path.read_bytes(), ImageLimits(), at_least=size).pixels, size)
