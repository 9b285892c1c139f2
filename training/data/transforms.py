"""Photo and labels changed together, and turned into tensors of the sizes that training wants."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import v2

from training.data.camera import turn
from training.data.labels import LABELS, LabelledPhoto, planes

__all__ = ["Augmentation", "flip", "to_tensors"]


@dataclass(frozen=True)
class Augmentation:
    """How training photos are varied.

    flip: share of mirror images. turned: share of photos as another camera sees them, with at most `turn` degrees of
    pan, tilt and roll and a lens at most `zoom` times as long; the others keep the view that photos have when the model
    is used. jitter: of brightness, contrast, saturation.
    """

    flip: float = 0.5
    turned: float = 0.5
    turn: float = 8.0
    zoom: float = 1.3
    jitter: float = 0.4

    def __call__(self, sample: LabelledPhoto, rng: np.random.Generator) -> LabelledPhoto:
        """A varied photo of the same size."""
        if rng.random() < self.flip:
            sample = flip(sample)
        if rng.random() < self.turned:
            pan, tilt, roll = np.radians(rng.uniform(-self.turn, self.turn, 3))
            zoom = float(np.exp(rng.uniform(0, np.log(self.zoom))))
            sample = turn(sample, pan=pan, tilt=tilt, roll=roll, zoom=zoom)
        # torchvision draws from torch's generator: seed it from ours, so that a sample depends on nothing else.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(rng.integers(2**31)))
            jitter = v2.ColorJitter(self.jitter, self.jitter, self.jitter, 0.05)
            image = np.asarray(jitter(Image.fromarray(sample.image)))
        return replace(sample, image=image)


def flip(sample: LabelledPhoto) -> LabelledPhoto:
    """The mirror image; twice is the identity."""
    labels = {
        task: np.ascontiguousarray(LABELS[sample.kinds[task]].mirrored(label)[:, ::-1])
        for task, label in sample.labels.items()
    }
    return replace(sample, image=np.ascontiguousarray(sample.image[:, ::-1]), labels=labels)


def to_tensors(sample: LabelledPhoto, size: tuple[int, int], label_size: tuple[int, int] | None) -> dict[str, Any]:
    """`name`; `image`: uint8 (3, *size), antialiased; labels at `label_size` (never averaged; None: as they are).

    Channels come first: normals become (3, h, w).
    """
    height, width = size
    image = Image.fromarray(sample.image).resize((width, height), Image.Resampling.BILINEAR)
    tensors: dict[str, Any] = {
        "name": sample.name,
        "image": torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous(),
    }
    for task, label in sample.labels.items():
        if label_size is not None:
            label = LABELS[sample.kinds[task]].resized(label, label_size)
        # A copy: decoded labels are read-only.
        tensors[task] = torch.from_numpy(np.array(planes(label), order="C"))
    return tensors
