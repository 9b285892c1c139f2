"""Several data sets at once: each optimiser step takes one batch of each, and depends on its number alone."""

import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from training.data.labels import LabelledPhoto
from training.data.loading import load
from training.data.photoset import PhotoSet
from training.data.transforms import cropped, to_tensors

__all__ = ["Mix", "Source"]

Augment = Callable[[LabelledPhoto, np.random.Generator], LabelledPhoto]
Batch = dict[str, Any]  # name: list[str]; image and labels: tensors


class Source(Dataset[dict[str, Any]]):
    """Training samples of one data set, endless; each epoch is a new order.

    Sample i depends on (seed, name of the data set, i) alone: every set draws numbers of its own. Labels have half of
    `size` a side, with `published` all of it, beside images that are resized as in `to_tensors(cubic=True)`.
    """

    def __init__(
        self, data: PhotoSet, *, size: tuple[int, int], augment: Augment, seed: int, published: bool = False
    ) -> None:
        self.data = data
        self._size = size
        self._label_size = size if published else (size[0] // 2, size[1] // 2)
        self._published = published
        self._augment = augment
        self._key = (seed, zlib.crc32(data.name.encode()))

    def __getitem__(self, index: int) -> dict[str, Any]:
        epoch, place = divmod(index, len(self.data))
        # NumPy fills short seeds up with zeros: 0 is the order's number, so that no sample draws the same.
        order = np.random.default_rng((*self._key, epoch, 0)).permutation(len(self.data))
        rng = np.random.default_rng((*self._key, epoch, place + 1))
        sample: LabelledPhoto = self.data[int(order[place])]
        if self.data.any_shape:
            sample = cropped(sample, self._size, rng)
        return to_tensors(self._augment(sample, rng), self._size, self._label_size, cubic=self._published)


class Mix:
    """`Mix({name: (source, batch)}).steps(first, last)` yields {name: batch} a step; resuming is starting later."""

    def __init__(self, sources: dict[str, tuple[Source, int]], *, workers: int) -> None:
        self._sources = sources
        self._workers = workers

    def steps(self, first: int, last: int) -> Iterator[dict[str, Batch]]:
        """One {name: batch} a step. Raises what reading a photo or a label raises."""
        loaders = []
        for source, batch in self._sources.values():
            indices = [list(range(step * batch, (step + 1) * batch)) for step in range(first, last)]
            loaders.append(
                load(
                    source,
                    batch_sampler=indices,
                    num_workers=self._workers,
                    generator=torch.Generator(),
                    prefetch_factor=3 if self._workers else None,
                )
            )
        for batches in zip(*loaders, strict=True):
            yield dict(zip(self._sources, batches, strict=True))
