"""The whole network: streamed backbone and one decoder a task."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from ptsa_serve.tasks import TASKS, Task
from training.adapters import SCALE, StreamLinear
from training.decoders import Decoder
from training.streams import StreamedSwin
from training.swin import MEAN, STD, build_swin, set_size, stage_widths
from training.tree import TaskTree

__all__ = ["ModelConfig", "PTSAModel"]


@dataclass(frozen=True)
class ModelConfig:
    """What it takes to build a model again. ranks: of the adapters, a stage; 0 = none. scale: of what they add."""

    backbone: str
    tree: TaskTree
    ranks: tuple[int, ...] = (0, 0, 0, 0)
    width: int = 96
    scale: float = SCALE

    def to_json(self) -> dict:
        return {**asdict(self), "tree": self.tree.to_json(), "ranks": list(self.ranks)}

    @classmethod
    def from_json(cls, data: dict) -> "ModelConfig":
        """Inverse of `to_json`. Raises KeyError, TypeError or ValueError for anything else."""
        # The first checkpoints do not name the scale: there was one.
        scale = data.get("scale", 4.0)
        return cls(data["backbone"], TaskTree.from_json(data["tree"]), tuple(data["ranks"]), data["width"], scale)


class PTSAModel(nn.Module):
    """Images in, raw planes of every task out.

    `forward(images, tasks)`: images (N, 3, H, W), uint8 or float, RGB 0...255, H and W multiples of 32. Returns task
    -> (N, channels, H/4, W/4); `training.heads.finish` turns them into maps. `tasks` defaults to all.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: ModelConfig, *, drop_path: float = 0.0) -> None:
        super().__init__()
        self.config = config
        swin = build_swin(config.backbone, drop_path=drop_path)
        self.tasks: dict[str, Task] = {name: TASKS[name] for name in config.tree.tasks}
        widths = stage_widths(swin)
        self.backbone = StreamedSwin(swin, config.tree, config.ranks, scale=config.scale)
        self.decoders = nn.ModuleDict(
            {name: Decoder(widths, task.channels, width=config.width) for name, task in self.tasks.items()}
        )
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor, tasks: Sequence[str] | None = None) -> dict[str, Tensor]:
        wanted = list(self.tasks) if tasks is None else [task for task in self.tasks if task in tasks]
        height, width = images.shape[-2:]
        set_size(self.backbone.swin, (height, width))
        taps = self.backbone((images.float() - self.mean) / self.std, wanted)
        return {task: self.decoders[task](taps[task]) for task in wanted}

    def freeze_backbone(self) -> None:
        """Leave only adapters and decoders trainable."""
        for parameter in self.backbone.parameters():
            parameter.requires_grad_(False)
        for module in self.backbone.modules():
            if isinstance(module, StreamLinear):
                module.down.requires_grad_(True)
                module.up.requires_grad_(True)
