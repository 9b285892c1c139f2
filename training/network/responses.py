"""What the bare backbone answers to photos, slot by slot: for methods that begin with it."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from training.backbones.base import Backbone, Bare
from training.network.slots import Slot

__all__ = ["covariances"]


@torch.no_grad()
def covariances(backbone: Backbone, slots: Sequence[Slot], photos: Iterable[Tensor]) -> dict[str, Tensor]:
    """By name of the slot the covariance (C, C), float64, of its outputs' channels over all tokens of `photos`.

    slots: linear layers; photos: normalised images (N, 3, H, W). Empty where there are no photos.
    """
    watch = _Watch(backbone, slots)
    for images in photos:
        backbone.walk(images, watch)
    found = {}
    for name, (count, total, squares) in watch.sums.items():
        mean = total / count
        found[name] = squares / count - mean[:, None] * mean
    return found


class _Watch(Bare):
    """Nothing changed, and the sums of what was asked for."""

    def __init__(self, backbone: Backbone, slots: Sequence[Slot]) -> None:
        super().__init__(backbone)
        self.sums: dict[str, tuple[int, Tensor, Tensor]] = {}
        self._watched = {slot.name for slot in slots}

    def slot(self, slot: Slot, *values: Any) -> Any:
        found = super().slot(slot, *values)
        if slot.name in self._watched:
            tokens = (found[0] if len(values) > 1 else found).flatten(0, -2).double()
            new = (len(tokens), tokens.sum(0), tokens.T @ tokens)
            old = self.sums.get(slot.name, (0, 0, 0))
            self.sums[slot.name] = (old[0] + new[0], old[1] + new[1], old[2] + new[2])
        return found
