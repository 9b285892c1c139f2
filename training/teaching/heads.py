"""One head of the room teacher, trained on cached features."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import Subset

from ptsa_serve.tasks import TASKS as RECORDS
from training.data.labels import IGNORE
from training.data.loading import load
from training.labelling.room_head import FILE, RoomHead
from training.rules.base import Batch
from training.rules.weighted_sum import WeightedSum
from training.running.loop import Plan, Work, train
from training.running.resume import announce, claim, say_how_far, write_state
from training.running.stepping import Optimisation, Precision, make_fabric
from training.scoring.losses import class_weights, task_loss
from training.teaching.cache import TASKS, Cache, Example, Job
from training.teaching.examples import Examples

__all__ = ["HeadConfig", "train_head"]

RESUME = "checkpoint.ckpt"

# Metres weigh less than in `fit`: most of their loss is that of the farthest walls, which features of rooms show badly.
_WEIGHTS = {"segmentation": 1.0, "depth": 0.5, "normals": 1.5}
_MAX_NORM = 2.0
_WARMUP = 0.1  # of the steps
_BALANCE = 64  # photos


@dataclass(frozen=True)
class HeadConfig:
    """How a head is trained; see `training.teach.TeachConfig`."""

    steps: int
    batch: int
    width: int
    blocks: int
    rate: float
    weight_decay: float
    ema: float
    seed: int
    precision: Precision


def train_head(config: HeadConfig, out: Path, cache: Cache, jobs: list[Job], *, workers: int, every: int) -> RoomHead:
    """Run or resume the training of a head in the folder `out`, saved `every` so many steps; it is in eval mode."""
    fabric = make_fabric(config.precision)
    fabric.seed_everything(config.seed, verbose=False)
    head = RoomHead(config.width, config.blocks)
    matrices = [p for p in head.parameters() if p.ndim > 1]
    others = [p for p in head.parameters() if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay, "peak": config.rate},
        {"params": others, "weight_decay": 0.0, "peak": config.rate},
    ]
    run = Optimisation(fabric, head, torch.optim.AdamW(groups), max_norm=_MAX_NORM, ema=config.ema)
    settings = asdict(config)
    if state := claim(out, RESUME, FILE, settings):
        run.restore(state)
    if run.step < config.steps:
        if state:
            say_how_far(out, run.step, config.steps)
        announce(settings)
        weights = _balance(cache, jobs).to(fabric.device)
        examples = Examples(cache, jobs, config.steps * config.batch, config.seed)

        def batches(first: int, last: int) -> Iterator[list[Batch]]:
            some = Subset(examples, range(first * config.batch, last * config.batch))
            loaded = load(some, batch_size=config.batch, num_workers=workers)
            for step, batch in enumerate(loaded, first):
                yield [Batch(f"the views of step {step}", batch)]

        def losses(batch: Example) -> dict[str, Tensor]:
            batch = {name: values.to(fabric.device) for name, values in batch.items()}
            raw = run.model(batch["coarse"], batch["fine"], batch["photo"])
            balanced = {"segmentation": weights}
            return {task: task_loss(RECORDS[task], raw[task], batch[task], balanced.get(task)) for task in TASKS}

        work = Work(batches, losses, _WEIGHTS, save=lambda: write_state(out / RESUME, run.state(), settings))
        plan = Plan(out.name, out, config.steps, max(1, round(_WARMUP * config.steps)), config.seed, every)
        train(run, WeightedSum(), plan, work)
    return cast(RoomHead, run.result).cpu().eval()


def _balance(cache: Cache, jobs: list[Job]) -> Tensor:
    """Weights of the classes, from some of the photos as they are."""
    whole = [job for job in jobs if not job[1]]
    labels = [cache.read(job)["segmentation"] for job in whole[:: max(1, len(whole) // _BALANCE)]]
    pixels: Any = torch.cat([label[label != IGNORE].flatten() for label in labels])
    return class_weights(torch.bincount(pixels.long(), minlength=RECORDS["segmentation"].channels))
