"""`python -m training count`: what a model costs, before anything is trained."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ptsa_serve.task_tree import TaskTree
from ptsa_serve.tasks import TASKS, Task
from training.accounting.account import account
from training.data import DATASETS
from training.errors import ConfigError
from training.network.decoders import DECODERS
from training.network.model import STRIDE, ModelConfig
from training.options import number_faults, refuse

__all__ = ["CountConfig", "count", "count_table", "parse_tasks", "parse_tree"]

# By name what the data sets label; those of the shipped model go first.
KNOWN = {n: task for data in DATASETS.values() for n, task in data.records.items()} | TASKS
MOST_CHANNELS = 256  # a map of classes is uint8
LARGEST_SIDE = 8192


@dataclass(frozen=True)
class CountConfig:
    """What `python -m training count` takes. Raises ConfigError that names what is wrong.

    Args:
        backbone: one of swin_nano, swin_tiny, swin_small, swin_base, swin_large.
        image_size: height and width of the photo, in pixels.
        tasks: by commas; name:channels, or the name alone of a task that the package knows.
        method: `python -m training methods` lists them.
        rank: of low-rank adapters, one for all stages or one a stage, 0 = none there; left out: the method's default.
        options: others of the method's, e.g. {merge: frozen, norms: per_group}.
        decoder: pyramid, or hrnet (MTLoRA's).
        width: channels of the pyramid decoders.
        tree: groups a stage, as numbers (1,2,2,4; costs depend on how many groups there are, not on who is in them) or
            written out as `fit` takes it; left out: 1,1,2 and each task alone.
    """

    backbone: str = "swin_nano"
    image_size: int = 448
    tasks: str = "segmentation,depth,normals,saliency"
    method: str = "ptsa"
    rank: int | list[int] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    decoder: str = "pyramid"
    width: int = 96
    tree: str | None = None

    def __post_init__(self) -> None:
        faults = number_faults(vars(self))
        if self.image_size % STRIDE or not STRIDE <= self.image_size <= LARGEST_SIDE:
            faults.append(f"--image-size is {self.image_size}; it must be a multiple of {STRIDE} up to {LARGEST_SIDE}")
        if self.decoder not in DECODERS:
            faults.append(f"--decoder {self.decoder!r} is unknown; known are {', '.join(DECODERS)}")
        refuse(faults)

    def model(self) -> ModelConfig:
        """The model that is counted. Raises ConfigError for tasks, a tree or options that it cannot have."""
        tasks = parse_tasks(self.tasks)
        names = [task.name for task in tasks]
        tree = parse_tree(self.tree or f"1,1,{min(2, len(names))},{len(names)}", names)
        options = self.options if self.rank is None else {**self.options, "rank": self.rank}
        return ModelConfig(self.backbone, tree, self.method, options, self.decoder, self.width, tasks)


def count(config: CountConfig) -> dict[str, Any]:
    """Trainable and deployed parameters, and multiply-adds of one photo; see `training.accounting.account.Account`."""
    return account(config.model(), (config.image_size, config.image_size)).to_json()


def count_table(counts: Mapping[str, Any]) -> str:
    """What `count` returns, for people."""
    deployed = counts["deployed"]
    rows = [
        ("trainable parameters", counts["trainable"]),
        ("  added by the method", counts["adapters"]),
        ("  of the backbone", counts["extras"]),
        ("  decoders", counts["decoders"]),
        ("deployed, folded", deployed["folded"]),
        ("deployed, low rank", deployed["low_rank"]),
        ("multiply-adds a photo", counts["multiply_adds"]),
    ]
    return "\n".join(f"{name:<22}{value:>18,}" for name, value in rows)


def parse_tasks(text: str) -> tuple[Task, ...]:
    """Read "segmentation:21,normals": the package's own tasks by name, others with the number of their channels.

    Channels alone say nothing of a task's kind: it is that of the package's task of the name, else classes, which are
    then named by their numbers. Raises ConfigError.
    """
    tasks = tuple(_task(*part.strip().partition(":")[::2]) for part in text.split(","))
    if len({task.name for task in tasks}) != len(tasks):
        raise ConfigError(f"tasks are {text!r}; name each once")
    return tasks


def _task(name: str, channels: str) -> Task:
    known = KNOWN.get(name)
    if known and channels in ("", str(known.channels)):
        return known
    if known and known.kind != "classes":
        raise ConfigError(f"task {name} has {known.channels} channels; leave {channels!r} out")
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,31}", name) or not channels:
        raise ConfigError(f"task {name!r} is unknown; known are {', '.join(KNOWN)}; of others say {name or 'name'}:7")
    number = int(channels) if channels.isascii() and channels.isdigit() else 0
    if not 1 <= number <= MOST_CHANNELS:
        raise ConfigError(f"task {name} has {channels!r} channels; allowed are 1 to {MOST_CHANNELS}")
    return Task(
        name,
        "classes",
        number,
        classes=tuple(map(str, range(number))),
        colors=tuple((index, index, index) for index in range(number)),
    )


def parse_tree(text: str, tasks: Sequence[str]) -> TaskTree:
    """Read groups a stage as numbers, "1,2,2,4" or "1-2-2-4", or written out. Raises ConfigError."""
    if re.fullmatch(r"[\d\s,-]+", text):
        return TaskTree.of_counts(tasks, [int(number) for number in re.findall(r"\d+", text)])
    tree = TaskTree.parse(text)
    if sorted(tree.tasks) != sorted(tasks):
        raise ConfigError(f"the tree names {', '.join(tree.tasks)}, the tasks are {', '.join(tasks)}; name the same")
    return tree
