"""Which tasks share: decoders are warmed up on the frozen backbone, gradients compared, and a tree is chosen.

The heart of PTSA (arXiv 2509.19602). All is kept in the run's folder with what it depends on; nothing is done twice.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor

from ptsa_serve.task_tree import TaskTree
from training.accounting.account import account, trained
from training.build import build
from training.data import DATASETS
from training.data.labels import LABELS, labelled
from training.data.mix import Mix, Source
from training.data.opening import open_set
from training.data.photoset import PhotoSet
from training.errors import ConfigError
from training.fit import fit, photo_size
from training.fit_config import FitConfig
from training.network.checkpoint import load_checkpoint, read_info
from training.network.model import ModelConfig, PTSAModel
from training.network.slots import ADAPTED
from training.running.resume import differences, note
from training.running.stepping import make_fabric
from training.scoring.balance import balance
from training.scoring.losses import task_loss
from training.similarity.config import SimilarityConfig, affordable
from training.similarity.measure import measure
from training.similarity.record import Similarity, read_similarity, write_similarity
from training.similarity.report import choose_tree, save_report

__all__ = ["find_tree", "read_tree", "search_of"]

Batches = Mapping[str, Mapping[str, Any]]  # a batch of each data set

COUNTED_AT = (448, 448)  # pixels that multiply-adds are counted for


@dataclass(frozen=True)
class _Search:
    """What warm-up, measurement and the training that follows have in common. balance: weights of classes by task."""

    config: SimilarityConfig
    warm: FitConfig
    sets: Mapping[str, PhotoSet]
    balance: Mapping[str, Tensor]


def find_tree(config: SimilarityConfig, sets: Mapping[str, PhotoSet] | None = None) -> str:
    """Measure, choose and save; returns the text of `tree.txt`, whose folder has the rest.

    sets: the training photos of `config.data`, if they are open. A measurement that the folder holds is used again if
    it is of this configuration.

    Raises what `fit` raises, ConfigError for a tree that cannot be had, DivergedError for gradients without numbers.
    """
    sets = sets or {name: open_set(name, root, "train") for name, root in config.data.items()}
    tasks = config.tasks or list(dict.fromkeys(task for name in config.data for task in DATASETS[name].records))
    config = affordable(config, len(tasks))
    warm = _warm_up(config, tasks)
    began = time.perf_counter()
    heads = fit(warm)
    seconds = time.perf_counter() - began
    fabric = make_fabric(warm.precision)
    model = load_checkpoint(heads).to(fabric.device)
    search = _Search(config, warm, sets, balance(sets, model, fabric.device))
    similarity = _measured(search, model, {"observations": config.observations, "decoders": read_info(heads)}, seconds)
    choice = choose_tree(similarity, config, _costs(config, model.config))
    return save_report(similarity, choice, config, _seconds_a_step(search, fabric, choice.tree))


def search_of(config: FitConfig, out: Path) -> SimilarityConfig:
    """The search before a training, by its own data, start and size, in batches of a quarter.

    config: in steps, as `resolved` says them. Many small batches tell more than few large ones: an observation is one.
    """
    assert config.start is not None  # `--tree auto` wants a backbone
    return SimilarityConfig(
        data=config.data, out=out, start=config.start, backbone=config.backbone, decoder=config.decoder,
        width=config.width, batches={name: max(1, batch // 4) for name, batch in config.batches.items()},
        options=dict(config.options), rank=16 if config.rank is None else config.rank,
        training_steps=config.steps, training_photos=config.accumulate * sum(config.batches.values()),
        scale=config.scale, side=config.side, seed=config.seed, workers=config.workers,
    )  # fmt: skip


def read_tree(path: Path) -> TaskTree:
    """The tree that a search left. Raises ConfigError for another file, OSError."""
    try:
        return TaskTree.from_json(json.loads(path.read_text()))
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ConfigError(f"{path} holds no tree; `python -m training similarity` writes one, as tree.json") from None


def _warm_up(config: SimilarityConfig, tasks: list[str]) -> FitConfig:
    """Decoders alone, in a folder of their own."""
    assert config.warm_up is not None  # `affordable` has said it
    return FitConfig(
        data=config.data, out=config.out / "decoders", start=config.start, method="decoders",
        backbone=config.backbone, tree=str(TaskTree.shared(tasks)), decoder=config.decoder, width=config.width,
        batches=config.batches, steps=config.warm_up, warmup=config.warm_up // 10, rate=config.rate,
        scale=config.scale, side=config.side, seed=config.seed, workers=config.workers,
    )  # fmt: skip


def _measured(search: _Search, model: PTSAModel, settings: Mapping[str, Any], warm_up_seconds: float) -> Similarity:
    """In full precision, on training photos that are not varied; by the file if that is of these settings.

    settings: what the figures depend on; those of other ones are measured again, which overwrites the file.
    """
    path = search.config.out / "similarity.json"
    if path.exists():
        found = read_similarity(path)
        changes = differences(found.settings, settings)
        if not changes:
            note(f"{path}: measured before; remove it to measure again")
            return found
        note(f"{path}: measured with other settings, so again ({'; '.join(changes)})")
        if found.settings.get("decoders") == settings["decoders"]:
            warm_up_seconds = found.warm_up_seconds
    weights = [
        [model.backbone.tensors(slot)["weight"] for slot in model.backbone.slots if _adapted(slot, stage)]
        for stage in range(len(model.backbone.widths))
    ]
    model.requires_grad_(False)
    loss_weights = {name: LABELS[task.kind].weight for name, task in model.tasks.items()}
    losses = partial(_losses, model, search.balance)
    measured = measure(model, _batches(search), losses, weights, tasks=list(model.tasks), loss_weights=loss_weights)
    similarity = replace(measured, warm_up_seconds=warm_up_seconds, settings=settings)
    write_similarity(path, similarity)
    return similarity


def _adapted(slot: Any, stage: int) -> bool:
    return slot.kind in ADAPTED and slot.stage == stage


def _batches(search: _Search) -> Iterator[Batches]:
    config, sources = search.config, {}
    assert config.observations is not None  # `affordable` has said it
    for name, data in search.sets.items():
        size = photo_size(search.warm, data)
        sources[name] = (
            Source(data, size=size, augment=lambda sample, _: sample, seed=config.seed),
            config.batches[name],
        )
    return Mix(sources, workers=0).steps(0, config.observations)


def _losses(model: PTSAModel, balance: Mapping[str, Tensor], batches: Batches) -> dict[str, Tensor | None]:
    """The loss of each task over the batches of all data sets; none where no pixel has a label."""
    device = model.mean.device
    found: dict[str, Tensor | None] = {}
    for batch in batches.values():
        labels = {task: batch[task].to(device) for task in model.tasks if task in batch}
        some = {t: y for t, y in labels.items() if labelled(model.tasks[t].kind, y, axis=1).any()}
        raw = model(batch["image"].to(device), list(some))
        for task, label in some.items():
            loss = task_loss(model.tasks[task], raw[task], label, balance.get(task))
            before = found.get(task)
            found[task] = loss if before is None else before + loss
    return found


def _costs(config: SimilarityConfig, decoders: ModelConfig) -> dict[str, Callable[[TaskTree], float]]:
    def adapted(tree: TaskTree) -> ModelConfig:
        return replace(decoders, tree=tree, method="ptsa", options={"rank": config.rank, **config.options})

    def trainable(tree: TaskTree) -> float:
        with torch.device("meta"):
            return sum(trained(PTSAModel(adapted(tree))).values())

    return {
        "trainable parameters": trainable,
        "multiply-adds": lambda tree: account(adapted(tree), COUNTED_AT).multiply_adds,
    }


def _seconds_a_step(search: _Search, fabric: Fabric, tree: TaskTree) -> float:
    """Of the training that follows: the second of two steps, which a little is left out of (the optimiser)."""
    config = search.config
    adapted = replace(search.warm, method="ptsa", rank=config.rank, options=config.options, tree=str(tree))
    model = build(adapted).to(fabric.device).train()
    seconds = 0.0
    for _, batches in zip(range(2), _batches(search), strict=False):
        began = time.perf_counter()
        with fabric.autocast():
            losses = _losses(model, search.balance, batches)
        sum(loss for loss in losses.values() if loss is not None).backward()  # pyright: ignore
        if fabric.device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - began
    return seconds * config.training_photos / sum(config.batches.values())
