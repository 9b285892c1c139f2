"""The photos of folders under names that stay theirs, and what is kept of them beside their labels."""

import hashlib
import io
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ptsa_serve.resize import shrink
from training.data.photos import PhotoFolder
from training.errors import DataError

__all__ = ["Job", "find_jobs", "kept"]

_LONGEST_NAME = 80  # letters before the checksum
_QUALITY = 90
_ORIENTATION = 0x0112  # EXIF


@dataclass(frozen=True)
class Job:
    """A photo to label. name: of its files, without suffix. source: its folder's name and its path below."""

    name: str
    source: str
    path: Path


def find_jobs(folders: Iterable[Path]) -> list[Job]:
    """All photos below `folders`. A photo's name does not depend on which others there are, or where its folder lies.

    Raises FileNotFoundError for a folder that is not there or has none, DataError if two would have one name.
    """
    found: dict[str, Job] = {}
    for folder in folders:
        for path in PhotoFolder(folder).files():
            source = f"{folder.resolve().name}/{path.relative_to(folder).as_posix()}"
            job = Job(_name(source), source, path)
            if (other := found.setdefault(job.name, job)) is not job:
                raise DataError(
                    f"{other.path} and {path} would have one name, {job.name}: their folders are called alike; name "
                    "by --photos one folder above both instead"
                )
    return sorted(found.values(), key=lambda job: job.source)


def kept(path: Path, pixels: NDArray[np.uint8], side: int) -> bytes:
    """The JPEG that is kept of a photo: its longer side is at most `side`.

    pixels: RGB (H, W, 3), decoded from its file. An upright JPEG that is small enough is kept as it is.
    """
    if max(pixels.shape[:2]) <= side and _plain(path):
        return path.read_bytes()
    scale = min(1.0, side / max(pixels.shape[:2]))
    height, width = (max(1, round(length * scale)) for length in pixels.shape[:2])
    out = io.BytesIO()
    Image.fromarray(shrink(pixels, (height, width))).save(out, "JPEG", quality=_QUALITY)
    return out.getvalue()


def _name(source: str) -> str:
    """Letters that any file system takes, with a checksum that tells apart what they do not."""
    words = re.sub(r"[^A-Za-z0-9]+", "-", source.rpartition(".")[0]).strip("-")[-_LONGEST_NAME:]
    return f"{words}-{hashlib.sha256(os.fsencode(source)).hexdigest()[:8]}".lstrip("-")


def _plain(path: Path) -> bool:
    """Whether a photo that has been decoded is an RGB JPEG that is stored upright."""
    with Image.open(path) as image:
        return image.format == "JPEG" and image.mode == "RGB" and image.getexif().get(_ORIENTATION, 1) == 1
