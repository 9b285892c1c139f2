"""Backbones by name: each lists its slots and stages; weights are loaded in `loading`."""

from training.backbones.base import Backbone
from training.backbones.pvt import PVT, PVTS
from training.backbones.swin import SWINS, Swin
from training.errors import ConfigError

__all__ = ["MEAN", "STD", "Backbone", "build_backbone", "known_backbones"]

# ImageNet statistics (timm's IMAGENET_DEFAULT_MEAN and _STD) times 255: images come as 0...255.
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)

FAMILIES = ((SWINS, Swin), (PVTS, PVT))


def known_backbones() -> tuple[str, ...]:
    return tuple(name for table, _ in FAMILIES for name in table)


def build_backbone(name: str, *, drop_path: float = 0.0) -> Backbone:
    """A backbone with random weights, without a classifier. Raises ConfigError for an unknown name."""
    for table, family in FAMILIES:
        if name in table:
            return family(name, drop_path=drop_path)
    raise ConfigError(f"backbone {name!r} is unknown; known are {', '.join(known_backbones())}")
