"""Photos without labels, from any folders, as an endless stream for pre-training."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from ptsa_serve.images import SUFFIXES
from training.data.files import read_photo
from training.errors import DataError

__all__ = ["PhotoFolder", "PhotoStream"]

# Photos are decoded at no more than they need: a crop of a fifth of these sides squared is about 224 pixels wide.
_AT_LEAST = (512, 512)


@dataclass(frozen=True)
class PhotoFolder:
    """A folder searched recursively, and how often it is drawn from, relative to the others."""

    path: Path
    weight: float | None = None  # None: as many times as it holds photos

    @classmethod
    def parse(cls, text: str) -> "PhotoFolder":
        """Read `PATH` or `PATH=WEIGHT`. Raises DataError for a weight that is not a positive number."""
        path, equals, weight = text.rpartition("=")
        if not equals:
            return cls(Path(text))
        try:
            value = float(weight)
        except ValueError:
            value = -1.0
        if not 0 < value < math.inf:
            raise DataError(f"{text!r}: the weight after '=' must be a positive number, e.g. photos/nyu=0.25")
        return cls(Path(path), value)

    def files(self) -> list[Path]:
        """All photos below, sorted. Raises FileNotFoundError if there is no such folder or no photo in it."""
        if not self.path.is_dir():
            raise FileNotFoundError(f"{self.path}: no such folder of photos")
        files = sorted(p for p in self.path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        if not files:
            raise FileNotFoundError(f"{self.path}: no photo below ({', '.join(sorted(SUFFIXES))} are read)")
        return files


class PhotoStream(Dataset[Tensor]):
    """Sample i, uint8 (3, size, size) RGB, is a pure function of (seed, i): resuming is starting at another i.

    Raises OSError or DataError for a file that is no photo, with its path.
    """

    def __init__(self, folders: Sequence[PhotoFolder], *, size: int, length: int, seed: int = 0) -> None:
        self._files = [folder.files() for folder in folders]
        weights = [f.weight or float(len(files)) for f, files in zip(folders, self._files, strict=True)]
        self._weights = torch.tensor(weights, dtype=torch.float64)
        self._length = length
        self._seed = seed
        self._augment = v2.Compose(
            [
                v2.RandomResizedCrop(size, scale=(0.2, 1.0), antialias=True),
                v2.RandomHorizontalFlip(),
                v2.ColorJitter(0.2, 0.2, 0.2, 0.02),
            ]
        )

    @property
    def photos(self) -> int:
        return sum(len(files) for files in self._files)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed * 1_000_003 + index)
            files = self._files[int(torch.multinomial(self._weights, 1))]
            path = files[int(torch.randint(len(files), ()))]
            pixels = torch.tensor(read_photo(path, at_least=_AT_LEAST))  # a copy: Pillow's pixels are read-only
            return self._augment(pixels.permute(2, 0, 1))
