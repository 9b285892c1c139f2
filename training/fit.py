"""Train a multi-task model on labelled photos: all of its weights, or adapters and decoders on a frozen backbone."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.fabric import Fabric
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from training.checkpoint import is_checkpoint, load_matching, save_checkpoint, save_state, sha256
from training.data import DATASETS
from training.data.labels import IGNORE
from training.data.mix import Mix, Source
from training.data.transforms import Augmentation
from training.evaluate import scaled
from training.losses import class_weights, task_loss
from training.model import ModelConfig, PTSAModel
from training.progress import Progress
from training.schedule import warmup_cosine
from training.swin import load_swin
from training.tree import TaskTree

__all__ = ["FitConfig", "fit"]

# So that each task's gradient is of one order: nats, metres, radians, nats.
LOSS_WEIGHTS = {"segmentation": 1.0, "depth": 1.0, "normals": 3.0, "saliency": 1.0}


# In the output folder: what a killed run continues from.
RESUME = "resume.ckpt"


@dataclass(frozen=True)
class FitConfig:
    """What `python -m training fit` takes.

    Args:
        data: folder of each data set, e.g. {nyu: data/nyu, ccp: data/ccp}.
        out: folder for model.safetensors, the resume checkpoint and TensorBoard logs.
        train: all = every weight, without adapters; adapters = adapters and decoders, the backbone frozen.
        backbone: one of swin_nano, swin_tiny, swin_small, swin_base.
        start: backbone weights (`pretrain` wrote them) or a model.safetensors of an earlier fit, taken over as far as
            it fits.
        tree: task groups a stage: stages split by /, groups by |, tasks by a comma.
        ranks: of the adapters, a stage.
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
        precision: of Fabric: bf16-mixed or 32-true.
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
    batches: dict[str, int] = field(default_factory=lambda: {"nyu": 12, "ccp": 4})
    steps: int = 1000
    rate: float = 1e-3
    backbone_rate: float = 4e-4
    warmup: int = 50
    weight_decay: float = 0.05
    drop_path: float = 0.1
    scale: float = 1.0
    seed: int = 0
    workers: int = 1
    precision: str = "bf16-mixed"
    save_every: int = 100

    def __post_init__(self) -> None:
        faults = [
            f"data set {name!r} is unknown; known are {', '.join(DATASETS)}"
            for name in self.data
            if name not in DATASETS
        ]
        faults += [f"--batches has nothing for {name}" for name in self.data if not self.batches.get(name)]
        if len(self.ranks) != 4:
            faults.append(f"--ranks needs 4 numbers, one a stage; got {self.ranks}")
        if faults:
            raise ValueError("; ".join(faults))


def fit(config: FitConfig) -> Path:
    """Run or resume a training; returns the path of the checkpoint (`model.safetensors`).

    A folder `out` with a resume checkpoint is continued at the step it was saved: every sample and every random
    number of a step depends on the seed and the step's number alone, so the result is that of an unbroken run.
    Raises FileNotFoundError for missing data, ValueError for a loss that is not finite.
    """
    fabric = Fabric(accelerator="auto", devices=1, precision=config.precision)  # pyright: ignore[reportArgumentType]
    fabric.seed_everything(config.seed, verbose=False)
    sets = {name: DATASETS[name](root, "train") for name, root in config.data.items()}
    model = build(config)
    weights = {task: class_weights(counts) for task, counts in _class_counts(sets, model).items()}
    optimizer = torch.optim.AdamW(_groups(model, config), lr=config.rate)
    wrapped, optimizer = fabric.setup(model, optimizer)
    state: dict[str, Any] = {"model": wrapped, "optimizer": optimizer, "step": 0}
    config.out.mkdir(parents=True, exist_ok=True)
    if (config.out / RESUME).exists():
        fabric.load(config.out / RESUME, state)
    _run(config, fabric, _mix(config, sets), state, weights)
    result = config.out / "model.safetensors"
    save_checkpoint(model, result, info=_provenance(config, sets))
    save_state(fabric, config.out / RESUME, state)
    return result


def _mix(config: FitConfig, sets: dict[str, Any]) -> Mix:
    sources = {}
    for name, data in sets.items():
        size = scaled(data.size, config.scale)
        sources[name] = (Source(data, size=size, augment=Augmentation(), seed=config.seed), config.batches[name])
    return Mix(sources, workers=config.workers)


def _run(config: FitConfig, fabric: Fabric, mix: Mix, state: dict[str, Any], weights: dict[str, Tensor]) -> None:
    """From `state["step"]` to the last step, saving on the way."""
    model, optimizer = state["model"], state["optimizer"]
    writer = SummaryWriter(config.out / "logs", purge_step=state["step"])
    progress = Progress("fit", config.steps, start=state["step"])
    model.train()
    for step, batches in enumerate(mix.steps(state["step"], config.steps), state["step"]):
        torch.manual_seed(config.seed * 1_000_003 + step)  # dropout and drop path
        for group in optimizer.param_groups:
            group["lr"] = warmup_cosine(step, config.steps, peak=group["peak"], warmup=config.warmup)
        losses = _step(fabric, model, batches, weights)
        fabric.clip_gradients(model, optimizer, max_norm=5.0)
        optimizer.step()
        optimizer.zero_grad()
        state["step"] = step + 1
        progress.update(step + 1, **losses)
        for task, value in losses.items():
            writer.add_scalar(f"loss/{task}", value, step)
        if (step + 1) % config.save_every == 0 and step + 1 < config.steps:
            save_state(fabric, config.out / RESUME, state)
    progress.close()
    writer.close()


def build(config: FitConfig) -> PTSAModel:
    """The model to train, with its starting weights and what is trainable set."""
    tree = TaskTree.parse(config.tree)
    adapted = config.train == "adapters"
    if not adapted:
        tree = TaskTree.shared(tree.tasks)
    ranks = tuple(config.ranks) if adapted else (0, 0, 0, 0)
    model_config = ModelConfig(config.backbone, tree, ranks, config.width)
    model = PTSAModel(model_config, drop_path=0.0 if adapted else config.drop_path)
    if config.start is not None:
        _start(model, config.start)
    if adapted:
        model.freeze_backbone()
        model.backbone.swin.half().float()  # the shipped precision: nothing learnt on top is lost to rounding
    return model


def _start(model: PTSAModel, path: Path) -> None:
    if is_checkpoint(path):
        missing = load_matching(model, path)
        if missing:
            raise ValueError(f"{path} lacks {missing[:3]}; was it trained with the same tasks?")
    elif any(model.config.ranks):
        raise ValueError(f"{path} holds a backbone alone; adapt the model.safetensors of `fit --train all`")
    else:
        load_swin(model.backbone.swin, path)


def _step(fabric: Fabric, model, batches: dict[str, dict], weights: dict[str, Tensor]) -> dict[str, float]:
    """Add up the gradients of one batch of each data set; returns the loss of each task."""
    values = {}
    for name, batch in batches.items():
        tasks = [task for task in batch if task in model.tasks]
        raw = model(batch["image"].to(fabric.device), tasks)
        losses = {
            task: task_loss(model.tasks[task], raw[task], batch[task].to(fabric.device), weights.get(task))
            for task in tasks
        }
        values |= {task: loss.item() for task, loss in losses.items()}
        bad = [task for task in tasks if values[task] != values[task]]
        if bad:
            raise ValueError(
                f"the loss of {', '.join(bad)} is not a number for {name} photos {', '.join(batch['name'])}; "
                "look at their labels, or lower --rate and run again: the run resumes from its last checkpoint"
            )
        fabric.backward(sum(LOSS_WEIGHTS[task] * loss for task, loss in losses.items()))  # pyright: ignore
    return values


def _class_counts(sets: dict[str, Any], model: PTSAModel) -> dict[str, Tensor]:
    """Pixels of each class in the training photos (64 of them, evenly spread), for each task of classes."""
    counts = {}
    for data in sets.values():
        for task in data.tasks:
            if task not in model.tasks or model.tasks[task].kind != "classes":
                continue
            some = range(0, len(data), max(1, len(data) // 64))
            labels = np.concatenate([data[i].labels[task].ravel() for i in some])
            pixels = np.bincount(labels[labels != IGNORE], minlength=model.tasks[task].channels)
            counts[task] = torch.from_numpy(pixels)
    return counts


def _groups(model: PTSAModel, config: FitConfig) -> Sequence[dict]:
    """Parameter groups: backbone and the rest, each with decay for matrices only."""
    groups = []
    backbone = {id(p) for p in model.backbone.swin.parameters()}
    for where, peak in ((True, config.backbone_rate), (False, config.rate)):
        for matrices in (True, False):
            chosen = [
                p
                for name, p in model.named_parameters()
                if p.requires_grad
                and (id(p) in backbone and config.train == "all") == where
                and (p.ndim >= 2 and "relative_position" not in name) == matrices
            ]
            if chosen:
                groups.append(
                    {"params": chosen, "peak": peak, "weight_decay": config.weight_decay if matrices else 0.0}
                )
    return groups


def _provenance(config: FitConfig, sets: dict[str, Any]) -> dict:
    return {
        "train": config.train,
        "steps": config.steps,
        "batches": config.batches,
        "scale": config.scale,
        "seed": config.seed,
        "data": {name: {"split": "train", "photos": len(data)} for name, data in sets.items()},
        "start": {"file": config.start.name, "sha256": sha256(config.start)} if config.start else None,
    }
