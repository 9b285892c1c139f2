"""Train a multi-task model on labelled photos: all of its weights, or adapters and decoders on a frozen backbone."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric import Fabric
from torch import Tensor

from training.build import build, parameter_groups
from training.checkpoint import save_checkpoint, sha256
from training.data.labels import IGNORE
from training.data.mix import Mix, Source
from training.data.opening import check_labels, open_set
from training.data.transforms import Augmentation
from training.evaluate import scaled
from training.fit_config import LOSS_WEIGHTS, FitConfig, label_faults
from training.loop import Plan, Work, train
from training.losses import class_weights, task_loss
from training.model import PTSAModel
from training.options import MAY_CHANGE, refuse
from training.resume import claim, say_how_far, write_state
from training.rules.base import Batch
from training.rules.weighted_sum import WeightedSum
from training.stepping import Optimisation, make_fabric
from training.tree import TaskTree

__all__ = ["FitConfig", "fit"]

# In the output folder: the result, and what a killed run continues from.
RESULT = "model.safetensors"
RESUME = "resume.ckpt"


def fit(config: FitConfig) -> Path:
    """Run or resume a training; returns the path of the checkpoint (`model.safetensors`).

    A folder `out` that holds this run is continued at the step it was saved, a finished run is left as it is: every
    sample and every random number of a step depends on the seed and the step's number alone, so the result is that of
    an unbroken run. Raises TrainingError for settings, photos, weights or a folder that cannot be used and for losses
    or gradients that are not finite, OSError for files that cannot be read or written.
    """
    fabric = make_fabric(config.precision)
    fabric.seed_everything(config.seed, verbose=False)
    sets = {name: open_set(name, root, "train") for name, root in config.data.items()}
    refuse(label_faults(TaskTree.parse(config.tree).tasks, {name: data.tasks for name, data in sets.items()}))
    for data in sets.values():
        check_labels(data)
    model = build(config)
    settings = _settings(config, model, sets, fabric)
    run = Optimisation(fabric, model, torch.optim.AdamW(parameter_groups(model, config), lr=config.rate), max_norm=5.0)
    if state := claim(config.out, RESUME, RESULT, settings):
        run.restore(state)
        say_how_far(config.out, run.step, config.steps)
    if run.step < config.steps:
        work = Work(
            batches=partial(_batches, config, sets),
            losses=partial(_losses, run, _class_weights(sets, model, fabric.device)),
            weights=LOSS_WEIGHTS,
            save=lambda: write_state(config.out / RESUME, run.state(), settings),
        )
        plan = Plan("fit", config.out, config.steps, config.warmup, config.seed, config.save_every)
        train(run, WeightedSum(), plan, work)
    # Made from the state, again where a kill came between the two.
    result = config.out / RESULT
    started = {"start": {"file": config.start.name, "sha256": settings["start"]} if config.start else None}
    save_checkpoint(model, result, info=settings | started)
    return result


def _batches(config: FitConfig, sets: dict[str, Any], first: int, last: int) -> Iterator[list[Batch]]:
    """The batches of each step: one of each data set."""
    sources = {}
    for name, data in sets.items():
        size = scaled(data.size, config.scale)
        sources[name] = (Source(data, size=size, augment=Augmentation(), seed=config.seed), config.batches[name])
    for batches in Mix(sources, workers=config.workers).steps(first, last):
        yield [Batch(f"{name} photos {', '.join(batch['name'])}", batch) for name, batch in batches.items()]


def _losses(run: Optimisation, weights: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
    """The loss of each task that the batch has labels for."""
    tasks = [task for task in batch if task in run.model.tasks]
    device = run.fabric.device
    raw = run.model(batch["image"].to(device), tasks)
    return {
        task: task_loss(run.model.tasks[task], raw[task], batch[task].to(device), weights.get(task)) for task in tasks
    }


def _class_weights(sets: dict[str, Any], model: PTSAModel, device: torch.device) -> dict[str, Tensor]:
    """Weights of the classes, on `device`, for each task of classes.

    From the pixels of each class in the training photos: 64 of them, evenly spread.
    """
    weights = {}
    for data in sets.values():
        for task in data.tasks:
            if task not in model.tasks or model.tasks[task].kind != "classes":
                continue
            some = range(0, len(data), max(1, len(data) // 64))
            labels = np.concatenate([data[i].labels[task].ravel() for i in some])
            pixels = np.bincount(labels[labels != IGNORE], minlength=model.tasks[task].channels)
            weights[task] = class_weights(torch.from_numpy(pixels)).to(device)
    return weights


def _settings(config: FitConfig, model: PTSAModel, sets: dict[str, Any], fabric: Fabric) -> dict[str, Any]:
    """All that the weights depend on, as JSON: compared when a run goes on, and written into its checkpoint."""
    unused = ("backbone_rate", "drop_path") if config.train == "adapters" else ()
    settings = {name: value for name, value in asdict(config).items() if name not in (*MAY_CHANGE, *unused)}
    return settings | {
        "tree": str(model.config.tree),
        "ranks": list(model.config.ranks),
        "adapter_scale": model.config.scale,
        "loss_weights": {task: LOSS_WEIGHTS[task] for task in model.tasks},
        "batches": {name: config.batches[name] for name in sets},
        "start": sha256(config.start) if config.start else None,
        "data": {name: _described(data) for name, data in sets.items()},
        "device": fabric.device.type,
    }


def _described(data: Any) -> dict[str, Any]:
    names = "\n".join(data.photo_path(index).name for index in range(len(data)))
    return {"split": "train", "photos": len(data), "names_sha256": hashlib.sha256(os.fsencode(names)).hexdigest()}
