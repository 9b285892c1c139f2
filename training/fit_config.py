"""What `python -m training fit` takes, and what is wrong with it before anything is built."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ptsa_serve.tasks import TASKS
from training.data import DATASETS
from training.data.labels import LABELS
from training.data.records import disagreements
from training.errors import ConfigError
from training.options import number_faults, refuse
from training.stepping import Precision
from training.swin import SWINS
from training.tree import TaskTree

__all__ = ["LOSS_WEIGHTS", "FitConfig", "label_faults"]

LOSS_WEIGHTS = {name: LABELS[task.kind].weight for name, task in TASKS.items()}

# Of these, the data sets that are there.
BATCHES = {"nyu": 12, "ccp": 4}


@dataclass(frozen=True)
class FitConfig:
    """What `python -m training fit` takes. Raises ConfigError that names every fault at once.

    Args:
        data: folder of each data set, e.g. {nyu: data/nyu, ccp: data/ccp}.
        out: folder for model.safetensors, the resume checkpoint and TensorBoard logs. A folder that holds a run is
            continued; out, workers and save_every may then differ, nothing else.
        train: all = every weight, without adapters; adapters = adapters and decoders, the backbone frozen.
        backbone: one of swin_nano, swin_tiny, swin_small, swin_base.
        start: backbone weights (`pretrain` wrote them) or a model.safetensors of an earlier fit; decoders that it
            lacks start from random weights. Needed to train adapters.
        tree: task groups a stage: stages split by /, groups by |, tasks by a comma.
        ranks: of the adapters, a stage; 0 = none there.
        width: channels of the decoders.
        batches: photos of each data set in a step, e.g. {nyu: 12, ccp: 4}.
        steps: optimiser steps in all.
        rate: peak learning rate of decoders and adapters.
        backbone_rate: peak learning rate of the backbone where it is trained.
        warmup: steps of linear warm-up before the cosine.
        weight_decay: of AdamW, for matrices.
        drop_path: of the last block, from 0 in the first, where the backbone is trained.
        scale: of the input's sides, 1 = as deployed (about 200,000 pixels).
        seed: decides order, augmentation and initial weights.
        workers: processes that read photos, for each data set.
        precision: 32-true, bf16-mixed, or on a GPU 16-mixed.
        save_every: steps between checkpoints.
    """

    data: dict[str, Path]
    out: Path
    start: Path | None = None
    train: Literal["all", "adapters"] = "adapters"
    backbone: str = "swin_nano"
    tree: str = (
        "segmentation,depth,normals,saliency / segmentation,depth,normals,saliency / "
        "segmentation,saliency | depth,normals / segmentation | saliency | depth | normals"
    )
    ranks: list[int] = field(default_factory=lambda: [16, 16, 16, 16])
    width: int = 96
    batches: dict[str, int] = field(default_factory=lambda: dict(BATCHES))
    steps: int = 1000
    rate: float = 1e-3
    backbone_rate: float = 4e-4
    warmup: int = 50
    weight_decay: float = 0.05
    drop_path: float = 0.1
    scale: float = 1.0
    seed: int = 0
    workers: int = 1
    precision: Precision = "bf16-mixed"
    save_every: int = 100

    def __post_init__(self) -> None:
        refuse([*number_faults(vars(self)), *_data_faults(self), *_tree_faults(self), *_model_faults(self)])


def _data_faults(config: FitConfig) -> list[str]:
    known = ", ".join(DATASETS)
    if not config.data:
        return [f"--data names no data set; known are {known}, e.g. --data '{{nyu: data/nyu}}'"]
    faults = [f"data set {name!r} is unknown; known are {known}" for name in config.data if name not in DATASETS]
    for name in config.data:
        if name not in config.batches:
            faults.append(f"--batches has nothing for {name}; say how many of its photos make a step")
        elif config.batches[name] < 1:
            faults.append(f"--batches has {config.batches[name]} for {name}; at least 1 photo makes a step")
    extra = [name for name in config.batches if name not in config.data]
    if extra and config.batches != BATCHES:
        faults.append(f"--batches names {', '.join(extra)}, --data does not; both must name the same sets")
    return faults


def _tree_faults(config: FitConfig) -> list[str]:
    """Each task must be known and learnt from some set, each set must teach some task."""
    try:
        tree = TaskTree.parse(config.tree)
    except ConfigError as error:
        return [f"--tree: {error}"]
    if len(tree.stages) != 4:
        return [f"--tree has {len(tree.stages)} stages, the backbone has 4; split them by /"]
    known = dict.fromkeys(task for data in DATASETS.values() for task in data.records)
    if unknown := [task for task in tree.tasks if task not in known]:
        return [f"--tree: task {unknown[0]!r} is unknown; known are {', '.join(known)}"]
    records = {name: DATASETS[name].records for name in config.data if name in DATASETS}
    faults = label_faults(tree.tasks, {name: list(tasks) for name, tasks in records.items()}) if records else []
    return faults + disagreements(tree.tasks, records)


def label_faults(tasks: Sequence[str], labelled: Mapping[str, Sequence[str]]) -> list[str]:
    """A sentence for each of `tasks` that no data set labels, and for each set that labels none of them.

    labelled: the tasks that each set has labels for.
    """
    can = {task: " or ".join(name for name, data in DATASETS.items() if task in data.records) for task in tasks}
    faults = [
        f"no data set of --data labels {task} ({can[task]} can); add its labels, or leave the task out of --tree"
        for task in tasks
        if not any(task in found for found in labelled.values())
    ]
    faults += [
        f"data set {name} labels nothing that --tree names ({', '.join(found)}); leave it out of --data"
        for name, found in labelled.items()
        if not set(found) & set(tasks)
    ]
    return faults


def _model_faults(config: FitConfig) -> list[str]:
    faults = []
    if config.backbone not in SWINS:
        faults.append(f"--backbone {config.backbone!r} is unknown; known are {', '.join(SWINS)}")
    if len(config.ranks) != 4 or not all(0 <= rank <= 1024 for rank in config.ranks):
        faults.append(f"--ranks needs 4 numbers from 0 to 1024, one a stage; got {config.ranks}")
    if config.train == "adapters" and not any(config.ranks):
        faults.append("--train adapters with --ranks of 0 has nothing to train in the backbone; give a rank above 0")
    if config.train == "adapters" and config.start is None:
        faults.append(
            "--train adapters without --start would freeze a backbone of random weights; "
            "name the weights that `pretrain` or `fit --train all` wrote"
        )
    return faults
