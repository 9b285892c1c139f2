"""The projection of the room teacher, fitted to what its networks see in a part of the photos."""

from collections.abc import Iterable

import torch
from torch import Tensor

from training.labelling.room_features import Features
from training.labelling.room_head import Projection

__all__ = ["fitted"]

_EVERY = 5  # a cell of each photo


def fitted(seen: Iterable[Features]) -> Projection:
    """Principal components of each network's channels over all cells, half whitened: divided by the root of their
    deviation, so that the weak ones are heard and yet weigh less, all with the mean deviation of 1.
    """
    cells: list[list[Tensor]] = []
    for features in seen:
        found = [values.flatten(1)[:, ::_EVERY] for values in features.maps]
        cells = [[*before, now] for before, now in zip(cells or [[]] * len(found), found, strict=True)]
    projection = Projection()
    for number, parts in enumerate(cells):
        x = torch.cat(parts, 1)
        mean, matrix = projection.get_buffer(f"mean{number}"), projection.get_buffer(f"matrix{number}")
        mean.copy_(x.mean(1))
        x = x - mean[:, None]
        vectors = torch.linalg.eigh(x @ x.T / x.shape[1]).eigenvectors.flip(1)  # the greatest first
        components = vectors[:, : len(matrix)].T
        kept = components @ x
        matrix.copy_(components / (kept.std(1, keepdim=True) * kept.std()).sqrt())
    return projection
