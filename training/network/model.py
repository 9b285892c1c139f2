"""The whole network: a backbone, what a method changes in it, and one decoder a task."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import torch
from torch import Tensor, nn

from ptsa_serve.manifest import TaskRecord
from ptsa_serve.task_tree import TaskTree
from ptsa_serve.tasks import TASKS, Task
from training.backbones import MEAN, STD, build_backbone
from training.errors import ConfigError
from training.methods import build_method, method_options, method_tree
from training.network.decoders import DECODERS
from training.network.executor import Stacked
from training.network.slots import Slot

__all__ = ["STRIDE", "ModelConfig", "PTSAModel", "check_size"]

STRIDE = 32  # of the coarsest maps


@dataclass(frozen=True)
class ModelConfig:
    """What it takes to build a model again.

    tree: groups a stage, for methods that have any. options: of the method, see its file. decoder: a row of
    `DECODERS`. width: of its inner maps, where it has a choice. tasks: what each task of the tree returns, in the
    tree's order; left out: the rows of `TASKS`. Raises ConfigError for options that do not fit, and for a task without
    a record.
    """

    backbone: str
    tree: TaskTree
    method: str = "ptsa"
    options: Mapping[str, Any] = field(default_factory=dict)
    decoder: str = "pyramid"
    width: int = 96
    tasks: tuple[Task, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", method_options(self.method, dict(self.options)))
        object.__setattr__(self, "tree", method_tree(self.method, self.tree))
        object.__setattr__(self, "tasks", _records(self.tree, self.tasks))

    def to_json(self) -> dict:
        tasks = [TaskRecord.of(task).model_dump(mode="json") for task in self.tasks]
        return {**asdict(self), "tree": self.tree.to_json(), "tasks": tasks}

    @classmethod
    def from_json(cls, data: dict) -> "ModelConfig":
        """Inverse of `to_json`. Raises KeyError, TypeError or ValueError for anything else."""
        # The first checkpoints do not say what their tasks are: there was one table of them.
        tasks = tuple(TaskRecord.model_validate(task).task() for task in data.get("tasks", ()))
        return cls(**{**data, "tree": TaskTree.from_json(data["tree"]), "tasks": tasks})


class PTSAModel(nn.Module):
    """Images in, raw planes of every task out.

    `forward(images, tasks)`: images (N, 3, H, W), uint8 or float, RGB 0...255, H and W multiples of 32. Returns task
    -> (N, channels, h, w); `training.network.heads.finish` turns them into maps. `tasks` defaults to all.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: ModelConfig, *, drop_path: float = 0.0) -> None:
        super().__init__()
        self.config = config
        self.tasks: dict[str, Task] = {task.name: task for task in config.tasks}
        decoder = DECODERS[config.decoder]
        self.backbone = build_backbone(config.backbone, drop_path=drop_path)
        self.method = build_method(config.method, self.backbone, config.tree, dict(config.options), decoder.tap)
        widths = self.backbone.tap_widths(decoder.tap)
        self.decoders = nn.ModuleDict(
            {name: decoder.build(widths, task.channels, config.width) for name, task in self.tasks.items()}
        )
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor, tasks: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Raises ValueError for sides that are no multiples of 32."""
        wanted = list(self.tasks) if tasks is None else [task for task in self.tasks if task in tasks]
        check_size((images.shape[-2], images.shape[-1]))
        place = self.method.layout.tap
        flow = Stacked(self.method.plan(wanted), wanted, place, self.method, training=self.backbone.training)
        self.backbone.walk(self.normalised(images), flow)
        return {task: self.decoders[task](flow.taps[task]) for task in wanted}

    def normalised(self, images: Tensor) -> Tensor:
        """Images of 0...255 as the backbone wants them."""
        return (images.to(self.mean.dtype) - self.mean) / self.std

    def freeze(self) -> None:
        """Leave trainable what the method trains, and the decoders or the part of them that it names."""
        self.method.freeze()
        for name, parameter in self.decoders.named_parameters():
            parameter.requires_grad_(self._tinted(name))

    def train(self, mode: bool = True) -> Self:
        """As torch's; batch norms of decoders that are not trained keep their statistics."""
        super().train(mode)
        if self.method.tinted:
            for name, module in self.decoders.named_modules():
                if isinstance(module, nn.BatchNorm2d) and not self._tinted(f"{name}.weight"):
                    module.eval()
        return self

    def owners(self) -> dict[str, frozenset[str]]:
        """The tasks whose losses reach each trainable parameter, by its name."""
        everyone = frozenset(self.tasks)
        owners = {f"method.{name}": tasks for name, tasks in self.method.owners().items()}
        owners |= {f"backbone.trunk.{name}": everyone for name in self.method.trained}
        own = [name for name, _ in self.decoders.named_parameters() if self._tinted(name)]
        return owners | {f"decoders.{name}": frozenset({name.partition(".")[0]}) for name in own}

    def _tinted(self, name: str) -> bool:
        """Whether a parameter of the decoders is trained."""
        return self.method.tinted in ("", name.split(".")[1])

    def places(self) -> dict[str, Slot]:
        """The slot that each parameter of the backbone, or of a change to it, lies in, by its name."""
        own = {f"backbone.trunk.{name}": slot for slot in self.backbone.slots for name in slot.tensors.values()}
        return own | {f"method.{name}": slot for name, slot in self.method.places().items()}


def _records(tree: TaskTree, given: Sequence[Task]) -> tuple[Task, ...]:
    """One record for each task of the tree, in its order."""
    known = {task.name: task for task in given} or TASKS
    if unknown := [name for name in tree.tasks if name not in known]:
        raise ConfigError(f"the tree names {', '.join(unknown)}, the tasks are {', '.join(known)}; name those alone")
    return tuple(known[name] for name in tree.tasks)


def check_size(size: tuple[int, int]) -> None:
    """Raise ValueError for (H, W) whose sides are no multiples of 32."""
    if size[0] % STRIDE or size[1] % STRIDE:
        raise ValueError(f"input size {size[0]} x {size[1]}: both sides must be multiples of {STRIDE}")
