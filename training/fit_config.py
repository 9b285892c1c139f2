"""What `python -m training fit` takes, and what is wrong with it before anything is built."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from training.backbones import known_backbones
from training.data import DATASETS
from training.decoders import DECODERS
from training.errors import ConfigError
from training.methods import METHODS, method_options
from training.options import number_faults, refuse
from training.stepping import Precision
from training.tree import TaskTree

__all__ = ["LOSS_WEIGHTS", "FitConfig", "label_faults"]

# So that each task's gradient is of one order: nats, metres, radians, nats.
LOSS_WEIGHTS = {"segmentation": 1.0, "depth": 1.0, "normals": 3.0, "saliency": 1.0}

# Of these, the data sets that are there.
BATCHES = {"nyu": 12, "ccp": 4}


@dataclass(frozen=True)
class FitConfig:
    """What `python -m training fit` takes. Raises ConfigError that names every fault at once.

    Args:
        data: folder of each data set, e.g. {nyu: data/nyu, ccp: data/ccp}.
        out: folder for model.safetensors, the resume checkpoint and TensorBoard logs. A folder that holds a run is
            continued; out, workers and save_every may then differ, nothing else.
        method: what is trained of the backbone, and for whom; `python -m training methods` lists them.
        rank: of low-rank adapters, one for all stages or one a stage, 0 = none there; left out: the method's default.
        options: others of the method's, e.g. {merge: frozen, norms: per_group}.
        backbone: one of swin_nano, swin_tiny, swin_small, swin_base, swin_large.
        start: backbone weights (`pretrain` wrote them) or a model.safetensors of an earlier fit; decoders that it
            lacks start from random weights. Needed wherever the backbone is not trained as a whole.
        tree: task groups a stage: stages split by /, groups by |, tasks by a comma.
        decoder: pyramid, or hrnet (MTLoRA's).
        width: channels of the pyramid decoders.
        batches: photos of each data set in a step, e.g. {nyu: 12, ccp: 4}.
        steps: optimiser steps in all.
        rate: peak learning rate of decoders and of what the method adds.
        backbone_rate: peak learning rate of the backbone's own weights, where the method trains them.
        warmup: steps of linear warm-up before the cosine.
        weight_decay: of AdamW, for matrices.
        drop_path: of the last block, from 0 in the first, where the whole backbone is trained.
        scale: of the input's sides, 1 = as deployed (about 200,000 pixels).
        seed: decides order, augmentation and initial weights.
        workers: processes that read photos, for each data set.
        precision: 32-true, bf16-mixed, or on a GPU 16-mixed.
        save_every: steps between checkpoints.
    """

    data: dict[str, Path]
    out: Path
    start: Path | None = None
    method: str = "ptsa"
    rank: int | list[int] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    backbone: str = "swin_nano"
    tree: str = (
        "segmentation,depth,normals,saliency / segmentation,depth,normals,saliency / "
        "segmentation,saliency | depth,normals / segmentation | saliency | depth | normals"
    )
    decoder: str = "pyramid"
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

    @property
    def method_options(self) -> dict[str, Any]:
        """The method's options as they were given."""
        return {**self.options, **({} if self.rank is None else {"rank": self.rank})}

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
    if unknown := [task for task in tree.tasks if task not in LOSS_WEIGHTS]:
        return [f"--tree: task {unknown[0]!r} is unknown; known are {', '.join(LOSS_WEIGHTS)}"]
    known = {name: DATASETS[name].tasks for name in config.data if name in DATASETS}
    return label_faults(tree.tasks, known) if known else []


def label_faults(tasks: Sequence[str], labelled: Mapping[str, Sequence[str]]) -> list[str]:
    """A sentence for each of `tasks` that no data set labels, and for each set that labels none of them.

    labelled: the tasks that each set has labels for.
    """
    faults = [
        f"no data set of --data labels {task} ({' or '.join(n for n, d in DATASETS.items() if task in d.tasks)} can); "
        "add its labels, or leave the task out of --tree"
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
    if config.backbone not in known_backbones():
        faults.append(f"--backbone {config.backbone!r} is unknown; known are {', '.join(known_backbones())}")
    if config.decoder not in DECODERS:
        faults.append(f"--decoder {config.decoder!r} is unknown; known are {', '.join(DECODERS)}")
    try:
        method_options(config.method, config.method_options)
    except ConfigError as error:
        return [*faults, f"--method: {error}"]
    if METHODS[config.method].kind != "full" and config.start is None:
        faults.append(
            f"--method {config.method} without --start would freeze a backbone of random weights; "
            "name the weights that `pretrain` or `fit --method multi_task` wrote"
        )
    return faults
