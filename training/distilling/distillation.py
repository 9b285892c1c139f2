"""What the student of a distillation has to predict, and how far it is from it.

The student's stage outputs predict, through a norm and one linear layer each, the teacher's feature maps of the same
stride (standardised a channel, smooth L1) and its logits (KL divergence): what FitNets (arXiv 1412.6550) calls hints.
These readouts are thrown away afterwards. Nothing of the teachers' structure is assumed but named maps.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.backbones import Backbone
from training.distilling.teachers import Teacher
from training.errors import ConfigError

__all__ = ["WEIGHTS", "Student", "Target", "calibrate", "hint_loss", "match_targets"]

# Weight of each target in the sum: features are standardised, so they weigh alike; logits are in nats.
WEIGHTS = {"features": 1.0, "dense_logits": 0.5, "image_logits": 0.2}


@dataclass
class Target:
    """One map of one teacher: which student stage predicts it and how the error is measured."""

    teacher: int
    place: str
    stage: int
    kind: str
    channels: int
    mean: Tensor = field(default_factory=lambda: torch.zeros(0))
    std: Tensor = field(default_factory=lambda: torch.ones(0))

    @property
    def name(self) -> str:
        return f"{self.teacher}_{self.place}"


def match_targets(teachers: Sequence[Teacher], sample: Tensor) -> list[Target]:
    """Match each teacher map to the student stage of its stride. Raises ConfigError for a stride that no stage has."""
    targets = []
    stages = {4: 0, 8: 1, 16: 2, 32: 3}
    for index, teacher in enumerate(teachers):
        for place, tensor in teacher(sample).items():
            if tensor.shape[-1] == 1:
                targets.append(Target(index, place, 3, "image_logits", tensor.shape[1]))
                continue
            stride = sample.shape[-1] // tensor.shape[-1]
            if stride not in stages:
                raise ConfigError(f"teacher {index + 1} has {place} at stride {stride}; a student has {list(stages)}")
            kind = "dense_logits" if place == "logits" else "features"
            targets.append(Target(index, place, stages[stride], kind, tensor.shape[1]))
    return targets


class Student(nn.Module):
    """The backbone with one linear layer a target; stage 3's targets also see stage 4 (up-sampled twice)."""

    def __init__(self, backbone: Backbone, targets: Sequence[Target], compiled: bool) -> None:
        super().__init__()
        self.backbone = backbone
        self.targets = targets
        widths = list(backbone.widths)
        widths[2] += widths[3]
        # Swin's stage outputs are a residual sum of any scale, hence the norm.
        self.readouts = nn.ModuleDict(
            {t.name: nn.Sequential(nn.LayerNorm(w := widths[t.stage]), nn.Linear(w, t.channels)) for t in targets}
        )
        # Compiled as a function, so that the parameters keep timm's names.
        self._maps = torch.compile(backbone.maps) if compiled else backbone.maps

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = self._maps(images)
        up = maps[3].repeat_interleave(2, 1).repeat_interleave(2, 2)
        maps[2] = torch.cat([maps[2], up], -1)
        outputs = []
        for target in self.targets:
            x = maps[target.stage]
            if target.kind == "image_logits":
                x = x.mean((1, 2), keepdim=True)
            outputs.append(self.readouts[target.name](x))
        return outputs


def hint_loss(target: Target, predicted: Tensor, taught: Tensor) -> Tensor:
    """predicted (N, h, w, C); taught (N, C, h, w) or (N, C, 1, 1)."""
    taught = taught.permute(0, 2, 3, 1).float()
    predicted = predicted.float()
    if target.kind == "features":
        return F.smooth_l1_loss(predicted, (taught - target.mean) / target.std)
    log_p = predicted.flatten(0, 2).log_softmax(-1)
    return F.kl_div(log_p, taught.flatten(0, 2).log_softmax(-1), reduction="batchmean", log_target=True)


def calibrate(targets: list[Target], teach: list[list[Tensor]]) -> None:
    """Set each feature target's mean and deviation a channel from a few batches of teacher outputs."""
    for target, maps in zip(targets, zip(*teach, strict=True), strict=True):
        values = torch.cat([m.float().permute(0, 2, 3, 1).flatten(0, 2) for m in maps])
        target.mean = values.mean(0)
        target.std = values.std(0).clamp_min(1e-3)
