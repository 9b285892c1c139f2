"""Photo and labels changed together, and turned into tensors of the sizes that training wants."""

from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from torchvision.transforms import v2

from training.data.camera import spin, turn
from training.data.labels import LABELS, LabelledPhoto, planes

__all__ = ["AUGMENTATIONS", "Augmentation", "PublishedAugmentation", "cropped", "flip", "to_tensors"]

# How much wider or higher than its set's a photo may be and still be seen whole: square photos of a set of 4 : 3, and
# 16 : 9. Teachers see photos squeezed like that too, and many sets of photos hold squares of what was none.
_STRETCH = 1.4


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


@dataclass(frozen=True)
class PublishedAugmentation:
    """How the papers that start from ASTMT's loaders vary photos: mirrored, turned in the picture's plane, and scaled.

    flip: share of mirror images. turn: at most so many degrees. scales: from the first to the last if `between`, else
    one of them.
    """

    turn: float
    scales: tuple[float, ...]
    between: bool
    flip: float = 0.5

    def __call__(self, sample: LabelledPhoto, rng: np.random.Generator) -> LabelledPhoto:
        """A varied photo of the same size."""
        if rng.random() < self.flip:
            sample = flip(sample)
        angle = float(np.radians(rng.uniform(-self.turn, self.turn)))
        scale = rng.uniform(self.scales[0], self.scales[-1]) if self.between else rng.choice(self.scales)
        return spin(sample, angle=angle, scale=float(scale))


# By name, for recipes. The published ones: MTLoRA's code, `ScaleNRotate` and `RandomHorizontalFlip` of each data set.
AUGMENTATIONS: dict[str, Augmentation | PublishedAugmentation] = {
    "ours": Augmentation(),
    "mtlora_pascal": PublishedAugmentation(turn=20, scales=(0.75, 1.25), between=True),
    "mtlora_nyud": PublishedAugmentation(turn=0, scales=(1.0, 1.2, 1.5), between=False),
}


def flip(sample: LabelledPhoto) -> LabelledPhoto:
    """The mirror image; twice is the identity."""
    labels = {
        task: np.ascontiguousarray(LABELS[sample.kinds[task]].mirrored(label)[:, ::-1])
        for task, label in sample.labels.items()
    }
    return replace(sample, image=np.ascontiguousarray(sample.image[:, ::-1]), labels=labels)


def cropped(sample: LabelledPhoto, size: tuple[int, int], rng: np.random.Generator) -> LabelledPhoto:
    """A part of the photo that has the shape of `size` (H, W), as large as can be, anywhere; the whole if nearly so.

    Nobody who sees the part alone knows the lens, so labels are those of the shorter one that it seems to have been
    taken with, as in `camera.turn`.
    """
    height, width = sample.image.shape[:2]
    wider = width * size[0] / (height * size[1])
    if 1 / _STRETCH <= wider <= _STRETCH:
        return sample
    part = round(height * min(1, wider)), round(width / max(1, wider))
    top, left = (int(rng.integers(whole - side + 1)) for whole, side in zip((height, width), part, strict=True))
    here = np.s_[top : top + part[0], left : left + part[1]]
    zoom = max(height, width) / max(part)
    vectors = np.diag([1, 1, zoom])
    labels = {
        task: LABELS[sample.kinds[task]].seen(label[here], vectors, 1 / zoom) for task, label in sample.labels.items()
    }
    return replace(sample, image=np.ascontiguousarray(sample.image[here]), labels=labels)


def to_tensors(
    sample: LabelledPhoto, size: tuple[int, int], label_size: tuple[int, int] | None, *, cubic: bool = False
) -> dict[str, Any]:
    """`name`; `image`: uint8 (3, *size); labels at `label_size` (never averaged; None: as they are).

    Images are bilinear with antialiasing as the server makes them, or `cubic` without, as MTLoRA does; what overshoots
    is cut off at 0 and 255. Channels come first: normals become (3, h, w).
    """
    height, width = size
    if cubic:
        image = cv2.resize(sample.image, (width, height), interpolation=cv2.INTER_CUBIC)
    else:
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
