"""What a head learns from, in an endless order of its own: views of photos and their mirror images."""

import numpy as np
from torch.utils.data import Dataset

from training.labelling.room_head import mirrored
from training.teaching.cache import Cache, Example, Job

__all__ = ["Examples"]


class Examples(Dataset[Example]):
    """Sample i depends on the seed and i alone; in each epoch all `jobs` come once, in a new order."""

    def __init__(self, cache: Cache, jobs: list[Job], length: int, seed: int) -> None:
        self._cache, self._jobs, self._length, self._seed = cache, jobs, length, seed

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Example:
        epoch, place = divmod(index, len(self._jobs))
        order = np.random.default_rng((self._seed, epoch, 0)).permutation(len(self._jobs))
        example = self._cache.read(self._jobs[order[place]])
        mirror = np.random.default_rng((self._seed, epoch, place + 1)).random() < 0.5
        return mirrored(example) if mirror else example
