"""Photo and labels changed together, and turned into tensors of the sizes that training wants.

Geometry has meaning here: a mirror image turns the normals' x round; a photo enlarged by s shows a scene s times
nearer (the focal length is taken as fixed), so depth is divided by s.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms import v2

from training.data.labels import LabelledPhoto

__all__ = ["Augmentation", "flip", "nearest", "to_tensors", "zoom"]

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Augmentation:
    """How training photos are varied. `zoom`: largest enlargement; `jitter`: of brightness, contrast, saturation."""

    flip: float = 0.5
    zoom: float = 1.6
    jitter: float = 0.3

    def __call__(self, sample: LabelledPhoto, rng: np.random.Generator) -> tuple[LabelledPhoto, Box | None]:
        """A varied photo and the box (left, upper, right, lower) to cut from it, or None for all of it."""
        if rng.random() < self.flip:
            sample = flip(sample)
        box = None
        scale = float(np.exp(rng.uniform(0, np.log(self.zoom))))
        if rng.random() < 0.75:
            sample, box = zoom(sample, scale, float(rng.random()), float(rng.random()))
        if self.jitter:
            # torchvision draws from torch's generator: seed it from ours, so that a sample depends on nothing else.
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(int(rng.integers(2**31)))
                jitter = v2.ColorJitter(self.jitter, self.jitter, self.jitter, 0.05)
                image = np.asarray(jitter(Image.fromarray(sample.image)))
            sample = replace(sample, image=image)
        return sample, box


def flip(sample: LabelledPhoto) -> LabelledPhoto:
    """The mirror image; twice is the identity."""
    labels = {task: np.ascontiguousarray(label[:, ::-1]) for task, label in sample.labels.items()}
    if "normals" in labels:
        labels["normals"] = labels["normals"] * np.array([-1, 1, 1], np.float32)
    return replace(sample, image=np.ascontiguousarray(sample.image[:, ::-1]), labels=labels)


def zoom(sample: LabelledPhoto, scale: float, right: float, down: float) -> tuple[LabelledPhoto, Box]:
    """A box of 1/scale of each side, `right` and `down` in 0...1 of the free way; depth becomes depth / scale."""
    height, width = sample.image.shape[:2]
    h, w = height / scale, width / scale
    left, upper = right * (width - w), down * (height - h)
    labels = dict(sample.labels)
    if "depth" in labels:
        labels["depth"] = labels["depth"] / np.float32(scale)
    return replace(sample, labels=labels), (left, upper, left + w, upper + h)


def to_tensors(
    sample: LabelledPhoto, size: tuple[int, int], label_size: tuple[int, int] | None, box: Box | None = None
) -> dict[str, Any]:
    """`name`; `image`: uint8 (3, *size), antialiased; labels at `label_size` (nearest; None: as they are).

    Normals become (3, h, w).
    """
    height, width = size
    image = Image.fromarray(sample.image).resize((width, height), Image.Resampling.BILINEAR, box=box)
    tensors: dict[str, Any] = {
        "name": sample.name,
        "image": torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous(),
    }
    for task, label in sample.labels.items():
        if label_size is not None:
            label = nearest(label, label_size, box)
        tensor = torch.from_numpy(np.array(label))  # a copy: decoded labels are read-only
        tensors[task] = tensor.permute(2, 0, 1).contiguous() if task == "normals" else tensor
    return tensors


def nearest(label: NDArray, size: tuple[int, int], box: Box | None = None) -> NDArray:
    """Labels at pixel centres of a grid over the box: nothing is ever averaged."""
    left, upper, right, lower = box or (0, 0, label.shape[1], label.shape[0])
    rows = upper + (np.arange(size[0]) + 0.5) * (lower - upper) / size[0]
    columns = left + (np.arange(size[1]) + 0.5) * (right - left) / size[1]
    rows = rows.astype(int).clip(0, label.shape[0] - 1)
    columns = columns.astype(int).clip(0, label.shape[1] - 1)
    return label[np.ix_(rows, columns)]
