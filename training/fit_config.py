"""What `python -m training fit` takes, and what is wrong with it before anything is built."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ptsa_serve.errors import TreeError
from ptsa_serve.task_tree import TaskTree
from training.backbones import known_backbones
from training.data import DATASETS
from training.data.records import disagreements
from training.data.transforms import AUGMENTATIONS
from training.errors import ConfigError
from training.methods import METHODS, method_options
from training.network.decoders import DECODERS
from training.options import number_faults, refuse
from training.rules import RULES, rule_options
from training.running.stepping import Precision

__all__ = ["AUTO", "WAYS_TO_SAY", "FitConfig", "label_faults", "needs_labels", "resolved"]

# Options that say the same in two ways; the second goes before the first unless it is 0.
WAYS_TO_SAY = {
    "batches": "batch_each",
    "steps": "epochs",
    "warmup": "warmup_epochs",
    "scale": "side",
    "validate_every": "validate_epochs",
}

AUTO = "auto"  # a tree to be found

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
        backbone: swin_nano, swin_tiny, swin_small, swin_base, swin_large, pvt_v2_b0, pvt_v2_b1 or pvt_v2_b2.
        start: backbone weights (`pretrain` wrote them, or .pth as timm and the authors publish them) or a
            model.safetensors of an earlier fit; decoders that it lacks start from random weights. This or `pretrained`
            is needed wherever the backbone is not trained as a whole.
        pretrained: start from published ImageNet weights, which timm fetches, and keeps, where there is a network.
        tree: task groups a stage: stages split by /, groups by |, tasks by a comma; auto = the one that similarity
            finds for all tasks of the data sets, first; or a tree.json that `similarity` or `export tree` wrote.
        experts: checkpoints by task, e.g. {depth: runs/depth/model.safetensors}, for the method that merges them.
        keep: tasks of --start that stay as they are, bit for bit, while the others of the tree are learnt; for methods
            whose tasks share nothing that is trained: rcm, taps.
        decoder: pyramid, or hrnet (MTLoRA's).
        width: channels of the pyramid decoders.
        rule: what the losses of several tasks do to the weights: weighted_sum; adatask (accumulators of the optimiser a
            task, arXiv 2211.15055); connection_strength (channels have owners, whom the gradients of others do not
            oppose, arXiv 2406.02996); cross_learning (tensors of each task, none far from their centre: proposes a
            tree, arXiv 2010.12993); pareto (every preference among tasks at once, for methods with members, arXiv
            2210.09759); rank_shrink (adapters lose ranks they do not need, arXiv 2603.20403);
            tinting (experts' maps in place of labels, for the method that merges them, arXiv 2412.19098).
        rule_options: the rule's own, see its file.
        loss_weights: of tasks whose loss shall not weigh what its kind's does, e.g. {normals: 10}.
        batches: photos of each data set that pass together, e.g. {nyu: 12, ccp: 4}.
        batch_each: in place of `batches`: so many photos of every data set.
        accumulate: so many passes of `batches` make a step. One pass of them all gives the same gradients only where
            losses are means over as many pixels in each and no batch norm is trained; see `training.fit`.
        steps: steps in all.
        epochs: in place of `steps`: until the set that lasts longest was seen so many times.
        rate: peak learning rate of decoders and of what the method adds.
        backbone_rate: peak learning rate of the backbone's own weights, where the method trains them.
        rate_batch: both rates are for steps of so many photos, and scaled to those of a step; 0 = they are as given.
        warmup: steps of linear warm-up before the cosine.
        warmup_epochs: in place of `warmup`, in epochs.
        weight_decay: of AdamW, for matrices.
        clip: largest norm of all gradients together.
        drop_path: of the last block, from 0 in the first; left out: 0.1 where the whole backbone is trained, else 0.
        ema: store the average of the weights over the steps, which keeps this part of itself a step; 0 = the last ones.
        scale: of the input's sides, 1 = as deployed (about 200,000 pixels).
        augmentation: how photos are varied: ours, mtlora_pascal or mtlora_nyud (rotated, scaled: MTLoRA's).
        side: in place of `scale`: square inputs of this side, a multiple of 32; aspect ratios are not kept.
        hold_out: this part of the training photos, chosen by seed and name, is validated on instead: best.safetensors
            is then kept beside the last weights, and metrics.json says how good both are.
        validate_every: steps between validations; 0 = at the end alone.
        validate_epochs: in place of `validate_every`, in epochs.
        seed: decides order, augmentation and initial weights.
        workers: processes that read photos, for each data set.
        precision: 32-true, bf16-mixed, or on a GPU 16-mixed.
        save_every: steps between checkpoints.
    """

    data: dict[str, Path]
    out: Path
    start: Path | None = None
    pretrained: bool = False
    method: str = "ptsa"
    rank: int | list[int] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    backbone: str = "swin_nano"
    tree: str = (
        "segmentation,depth,normals,saliency / segmentation,depth,normals,saliency / "
        "segmentation,saliency | depth,normals / segmentation | saliency | depth | normals"
    )
    experts: dict[str, Path] = field(default_factory=dict)
    keep: list[str] = field(default_factory=list)
    decoder: str = "pyramid"
    width: int = 96
    rule: str = "weighted_sum"
    rule_options: dict[str, Any] = field(default_factory=dict)
    loss_weights: dict[str, float] = field(default_factory=dict)
    batches: dict[str, int] = field(default_factory=lambda: dict(BATCHES))
    batch_each: int = 0
    accumulate: int = 1
    steps: int = 1000
    epochs: int = 0
    rate: float = 1e-3
    backbone_rate: float = 4e-4
    rate_batch: int = 0
    warmup: int = 50
    warmup_epochs: int = 0
    weight_decay: float = 0.05
    clip: float = 5.0
    drop_path: float | None = None
    ema: float = 0.0
    scale: float = 1.0
    augmentation: str = "ours"
    side: int = 0
    hold_out: float = 0.0
    validate_every: int = 0
    validate_epochs: int = 0
    seed: int = 0
    workers: int = 1
    precision: Precision = "bf16-mixed"
    save_every: int = 100

    @property
    def method_options(self) -> dict[str, Any]:
        """The method's options as they were given."""
        return {**self.options, **({} if self.rank is None else {"rank": self.rank})}

    def __post_init__(self) -> None:
        checks = (_data_faults, _tree_faults, _model_faults, _course_faults)
        refuse([*number_faults(vars(self)), *(fault for check in checks for fault in check(self))])


def _data_faults(config: FitConfig) -> list[str]:
    known = ", ".join(DATASETS)
    if not config.data:
        return [f"--data names no data set; known are {known}, e.g. --data '{{nyu: data/nyu}}'"]
    faults = [f"data set {name!r} is unknown; known are {known}" for name in config.data if name not in DATASETS]
    if config.batch_each:
        return faults
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
    if config.tree == AUTO:
        return [] if config.start else ["--tree auto compares gradients on a backbone: name its weights by --start"]
    if config.tree.endswith(".json"):
        return []  # looked at when it is read
    try:
        tree = TaskTree.parse(config.tree)
    except TreeError as error:
        return [f"--tree: {error}"]
    if len(tree.stages) != 4:
        return [f"--tree has {len(tree.stages)} stages, the backbone has 4; split them by /"]
    known = dict.fromkeys([*(task for data in DATASETS.values() for task in data.records), *config.experts])
    if unknown := [task for task in tree.tasks if task not in known]:
        return [f"--tree: task {unknown[0]!r} is unknown; known are {', '.join(known)}"]
    if config.keep and not (config.start and set(config.keep) < set(tree.tasks)):
        return [f"--keep {config.keep} must be of --start, and --tree name them and others to learn"]
    if not needs_labels(config):
        return []
    learnt = [task for task in tree.tasks if task not in config.keep]
    records = {name: DATASETS[name].records for name in config.data if name in DATASETS}
    faults = label_faults(learnt, {name: list(tasks) for name, tasks in records.items()}) if records else []
    return faults + disagreements(learnt, records)


def needs_labels(config: FitConfig) -> bool:
    """Whether the photos must have labels of what is learnt."""
    return not config.experts or config.rule not in RULES or RULES[config.rule].needs_labels


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
    if config.backbone not in known_backbones():
        faults.append(f"--backbone {config.backbone!r} is unknown; known are {', '.join(known_backbones())}")
    if config.decoder not in DECODERS:
        faults.append(f"--decoder {config.decoder!r} is unknown; known are {', '.join(DECODERS)}")
    try:
        method_options(config.method, config.method_options)
    except ConfigError as error:
        return [*faults, f"--method: {error}"]
    if config.augmentation not in AUGMENTATIONS:
        faults.append(f"--augmentation {config.augmentation!r} is unknown; known are {', '.join(AUGMENTATIONS)}")
    if config.pretrained and config.start:
        faults.append("--start and --pretrained are two beginnings; give one of them")
    if METHODS[config.method].experts != bool(config.experts):
        faults.append(
            f"--method {config.method} merges no experts; leave --experts out"
            if config.experts
            else f"--method {config.method} merges a network of each task: name them by --experts '{{depth: FILE}}'"
        )
    if METHODS[config.method].kind != "full" and config.start is None and not config.pretrained:
        faults.append(
            f"--method {config.method} without --start would freeze a backbone of random weights; "
            "name the weights that `pretrain` or `fit --method multi_task` wrote"
        )
    return faults


def _course_faults(config: FitConfig) -> list[str]:
    """What is wrong with how the run goes: its rule, the size of its photos, its validations."""
    faults = []
    try:
        rule_options(config.rule, config.rule_options)
    except ConfigError as error:
        faults.append(f"--rule {error}")
    if config.side % 32:
        faults.append(f"--side is {config.side}; it must be a multiple of 32, or 0")
    if (config.validate_every or config.validate_epochs) and not config.hold_out:
        faults.append("--validate_every needs photos that are not trained on; keep some with --hold_out, e.g. 0.05")
    return faults


def resolved(config: FitConfig, photos: Mapping[str, int]) -> FitConfig:
    """The same run in steps and rates as they are applied: what a run is known by, whichever way it was asked for.

    photos: how many of each data set are trained on. An epoch is as many whole steps as the set that lasts longest has
    photos for (its last photos that make no step begin the next one), so 156 for PASCAL's 4,998 in steps of 32.
    """
    batches = {name: config.batch_each or config.batches[name] for name in config.data}
    a_step = {name: config.accumulate * batch for name, batch in batches.items()}
    epoch = max(1, *(photos[name] // a_step[name] for name in config.data))
    # Goyal et al., arXiv 1706.02677: the rate grows with the photos of a step.
    factor = sum(a_step.values()) / config.rate_batch if config.rate_batch else 1.0
    return replace(
        config,
        drop_path=(0.1 if METHODS[config.method].kind == "full" else 0.0)
        if config.drop_path is None
        else config.drop_path,
        batches=batches,
        batch_each=0,
        steps=config.epochs * epoch or config.steps,
        epochs=0,
        rate=factor * config.rate,
        backbone_rate=factor * config.backbone_rate,
        rate_batch=0,
        warmup=config.warmup_epochs * epoch or config.warmup,
        warmup_epochs=0,
        validate_every=config.validate_epochs * epoch or config.validate_every,
        validate_epochs=0,
    )
