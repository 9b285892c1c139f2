"""Which tasks share: decoders are warmed up on the frozen backbone, gradients compared, and a tree is chosen.

The heart of PTSA (arXiv 2509.19602). Everything is kept in the run's folder; a search that is done is not done again.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ptsa_serve.task_tree import TaskTree
from training.accounting.account import account
from training.build import build
from training.data import DATASETS
from training.data.labels import LABELS, labelled
from training.data.mix import Mix, Source
from training.data.opening import open_set
from training.errors import ConfigError
from training.evaluate import scaled
from training.fit import fit
from training.fit_config import FitConfig
from training.network.checkpoint import load_checkpoint
from training.network.model import ModelConfig, PTSAModel
from training.network.slots import ADAPTED
from training.running.resume import note
from training.scoring.balance import balance
from training.scoring.losses import task_loss
from training.similarity.config import SimilarityConfig
from training.similarity.measure import measure
from training.similarity.record import Similarity, read_similarity, write_similarity
from training.similarity.report import choose_tree, save_report

__all__ = ["find_tree", "read_tree", "search_of"]

Batches = Mapping[str, Mapping[str, Any]]  # a batch of each data set

COUNTED_AT = (448, 448)  # pixels that multiply-adds are counted for


def find_tree(config: SimilarityConfig) -> str:
    """Measure, choose and save; returns the text of `tree.txt`, whose folder has the rest.

    Raises what `fit` raises, ConfigError for a tree that cannot be had, DivergedError for gradients without numbers.
    """
    tasks = config.tasks or list(dict.fromkeys(task for name in config.data for task in DATASETS[name].records))
    began = time.perf_counter()
    warm = _warm_up(config, tasks)
    heads = fit(warm)
    similarity = _measured(config, heads, tasks)
    seconds = time.perf_counter() - began
    choice = choose_tree(similarity, config, _costs(config, warm))
    training_seconds = config.training_steps * _seconds_a_step(warm, config, choice.tree)
    return save_report(
        config.out, similarity, choice, measure=config.measure, scope=config.scope,
        seconds=seconds, training_seconds=training_seconds,
    )  # fmt: skip


def search_of(config: FitConfig, out: Path) -> SimilarityConfig:
    """The search before a training, by its own data, start and size."""
    batches = {name: config.batch_each or config.batches[name] for name in config.data}
    assert config.start is not None  # `--tree auto` wants a backbone
    return SimilarityConfig(
        data=config.data, out=out, start=config.start, backbone=config.backbone, decoder=config.decoder,
        width=config.width, batches={name: max(1, batch // 2) for name, batch in batches.items()},
        options=dict(config.options), rank=16 if config.rank is None else config.rank,
        training_steps=config.steps, training_photos=sum(batches.values()), scale=config.scale, seed=config.seed,
        workers=config.workers,
    )  # fmt: skip


def read_tree(path: Path) -> TaskTree:
    """The tree that a search left. Raises ConfigError for another file, OSError."""
    try:
        return TaskTree.from_json(json.loads(path.read_text()))
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ConfigError(f"{path} holds no tree; `python -m training similarity` writes one, as tree.json") from None


def _warm_up(config: SimilarityConfig, tasks: list[str]) -> FitConfig:
    """Decoders alone, in a folder of their own."""
    return FitConfig(
        data=config.data, out=config.out / "decoders", start=config.start, method="decoders",
        backbone=config.backbone, tree=str(TaskTree.shared(tasks)), decoder=config.decoder, width=config.width,
        batches=config.batches, steps=config.warm_up, warmup=config.warm_up // 10, rate=config.rate,
        scale=config.scale, seed=config.seed, workers=config.workers,
    )  # fmt: skip


def _measured(config: SimilarityConfig, heads: Path, tasks: list[str]) -> Similarity:
    """In full precision, on training photos that are not varied."""
    path = config.out / "similarity.json"
    if path.exists():
        note(f"{path}: measured before; remove it to measure again")
        return read_similarity(path)
    model = load_checkpoint(heads).to("cuda" if torch.cuda.is_available() else "cpu")
    weights = [
        [model.backbone.tensors(slot)["weight"] for slot in model.backbone.slots if _adapted(slot, stage)]
        for stage in range(len(model.backbone.widths))
    ]
    model.requires_grad_(False)
    loss_weights = {name: LABELS[task.kind].weight for name, task in model.tasks.items()}
    losses = _losses(config, model)
    similarity = measure(model, _batches(config), losses, weights, tasks=tasks, loss_weights=loss_weights)
    write_similarity(path, similarity)
    return similarity


def _adapted(slot: Any, stage: int) -> bool:
    return slot.kind in ADAPTED and slot.stage == stage


def _batches(config: SimilarityConfig) -> Iterator[Batches]:
    sources = {}
    for name, root in config.data.items():
        data = open_set(name, root, "train")
        source = Source(data, size=scaled(data.size, config.scale), augment=lambda sample, _: sample, seed=config.seed)
        sources[name] = (source, config.batches[name])
    return Mix(sources, workers=0).steps(0, config.observations)


def _losses(config: SimilarityConfig, model: PTSAModel) -> Callable[[Batches], dict[str, Tensor | None]]:
    """The loss of each task over the batches of all data sets; None where no pixel has a label."""
    device = model.mean.device
    sets = {name: open_set(name, root, "train") for name, root in config.data.items()}
    weights = balance(sets, model, device)

    def losses(batches: Batches) -> dict[str, Tensor | None]:
        found: dict[str, Tensor | None] = {}
        for batch in batches.values():
            labels = {task: batch[task].to(device) for task in model.tasks if task in batch}
            some = {t: y for t, y in labels.items() if labelled(model.tasks[t].kind, y, axis=1).any()}
            raw = model(batch["image"].to(device), list(some))
            for task, label in some.items():
                loss = task_loss(model.tasks[task], raw[task], label, weights.get(task))
                before = found.get(task)
                found[task] = loss if before is None else before + loss
        return found

    return losses


def _costs(config: SimilarityConfig, warm: FitConfig) -> dict[str, Callable[[TaskTree], float]]:
    records = build(warm).config.tasks

    def counted(tree: TaskTree) -> Any:
        options = {"rank": config.rank, **config.options}
        return account(
            ModelConfig(config.backbone, tree, "ptsa", options, config.decoder, config.width, records), COUNTED_AT
        )

    return {
        "trainable parameters": lambda tree: counted(tree).trainable,
        "multiply-adds": lambda tree: counted(tree).multiply_adds,
    }


def _seconds_a_step(warm: FitConfig, config: SimilarityConfig, tree: TaskTree) -> float:
    """Of the training that follows: the second of two steps, which a little is left out of (the optimiser)."""
    adapted = replace(warm, method="ptsa", rank=config.rank, options=config.options, tree=str(tree))
    model = build(adapted).train()
    losses = _losses(config, model)
    seconds = 0.0
    for _, batches in zip(range(2), _batches(config), strict=False):
        began = time.perf_counter()
        sum(loss for loss in losses(batches).values() if loss is not None).backward()  # pyright: ignore
        seconds = time.perf_counter() - began
    return seconds * config.training_photos / sum(config.batches.values())
