"""Distil small pre-trained teachers into a Swin, on photos without labels: the loop around `training.distillation`."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from torch.utils.tensorboard import SummaryWriter

from training.checkpoint import save_state
from training.data.photos import PhotoFolder, PhotoStream
from training.distillation import WEIGHTS, Student, Target, calibrate, hint_loss, match_targets
from training.progress import Progress
from training.schedule import warmup_cosine
from training.swin import MEAN, STD, build_swin, load_swin
from training.teachers import Teacher

__all__ = ["PretrainConfig", "pretrain"]


@dataclass(frozen=True)
class PretrainConfig:
    """What `python -m training pretrain` takes.

    Args:
        photos: folders of photos, searched recursively, each PATH or PATH=WEIGHT (how often it is drawn).
        teachers: stems of teachers: STEM.json and STEM.safetensors.
        out: folder for backbone.safetensors, the checkpoint and TensorBoard logs.
        backbone: one of swin_nano, swin_tiny, swin_small, swin_base.
        start: weights to start from (safetensors, timm's names); random when left out.
        steps: optimiser steps in all.
        batch: photos a step.
        size: side of the square crops, a multiple of 32; 224 fills every window.
        rate: peak learning rate.
        warmup: steps of linear warm-up before the cosine.
        weight_decay: of AdamW.
        seed: decides photos, crops and initial weights.
        workers: processes that decode photos.
        precision: of Fabric: bf16-mixed or 32-true.
        compile: torch.compile the backbone; takes minutes to start, and gained nothing measurable on two CPU cores.
        save_every: steps between checkpoints.
    """

    photos: list[str]
    teachers: list[str]
    out: Path
    backbone: str = "swin_nano"
    start: Path | None = None
    steps: int = 2000
    batch: int = 32
    size: int = 224
    rate: float = 1e-3
    warmup: int = 100
    weight_decay: float = 0.05
    seed: int = 0
    workers: int = 1
    precision: str = "bf16-mixed"
    compile: bool = False
    save_every: int = 100


class _Teaching:
    """The teachers side by side, and what of theirs is learnt."""

    def __init__(self, config: PretrainConfig, device: torch.device) -> None:
        self._dtype = torch.bfloat16 if "bf16" in config.precision else torch.float32
        self._teachers = [Teacher(stem).to(device).to(self._dtype).eval() for stem in config.teachers]
        probe = torch.zeros(1, 3, config.size, config.size, device=device, dtype=self._dtype)
        self.targets: list[Target] = match_targets(self._teachers, probe)

    def __call__(self, images: Tensor) -> list[Tensor]:
        """The map of each target for images (N, 3, H, W), 0...255."""
        outputs = [teacher(images.to(self._dtype)) for teacher in self._teachers]
        return [outputs[target.teacher][target.place] for target in self.targets]


def pretrain(config: PretrainConfig) -> Path:
    """Run or resume the distillation; returns the path of the backbone's weights (fp32, timm's names).

    A folder `out` with a checkpoint of the same configuration is resumed at the step it was saved.
    Raises FileNotFoundError for missing photos or teachers, ValueError for a loss that is not finite.
    """
    fabric = Fabric(accelerator="auto", devices=1, precision=config.precision)  # pyright: ignore[reportArgumentType]
    fabric.seed_everything(config.seed, verbose=False)
    photos = PhotoStream(
        [PhotoFolder.parse(text) for text in config.photos],
        size=config.size,
        length=config.steps * config.batch,
        seed=config.seed,
    )
    teach = _Teaching(config, fabric.device)
    swin = build_swin(config.backbone, size=(config.size, config.size))
    if config.start is not None:
        load_swin(swin, config.start)
    student = Student(swin, teach.targets, config.compile)
    optimizer = torch.optim.AdamW(student.parameters(), lr=config.rate, weight_decay=config.weight_decay)
    student, optimizer = fabric.setup(student, optimizer)
    state: dict[str, Any] = {"student": student, "optimizer": optimizer, "step": 0, "scales": {}}
    checkpoint = config.out / "checkpoint.ckpt"
    if checkpoint.exists():
        fabric.load(checkpoint, state)
        for target in teach.targets:
            target.mean, target.std = state["scales"][target.name]
    else:
        few = [teach(images) for images, _ in zip(_batches(config, photos, 0, fabric), range(8), strict=False)]
        calibrate(teach.targets, few)
        state["scales"] = {target.name: (target.mean, target.std) for target in teach.targets}
    _run(config, fabric, photos, teach, state)
    return config.out / "backbone.safetensors"


def _run(config: PretrainConfig, fabric: Fabric, photos: PhotoStream, teach: _Teaching, state: dict[str, Any]) -> None:
    """From `state["step"]` to the last step, saving on the way."""
    student, optimizer = state["student"], state["optimizer"]
    config.out.mkdir(parents=True, exist_ok=True)
    writer = SummaryWriter(config.out / "logs", purge_step=state["step"])
    progress = Progress("pretrain", config.steps, start=state["step"])
    student.train()
    for step, images in enumerate(_batches(config, photos, state["step"], fabric), state["step"]):
        for group in optimizer.param_groups:
            group["lr"] = warmup_cosine(step, config.steps, peak=config.rate, warmup=config.warmup)
        losses = _step(fabric, student, optimizer, images, teach)
        if losses["loss"] != losses["loss"]:
            raise ValueError(
                f"the loss is not a number at step {step}; lower --rate (now {config.rate:g}) and run again"
            )
        state["step"] = step + 1
        progress.update(step + 1, **losses)
        for name, value in losses.items():
            writer.add_scalar(name, value, step)
        if (step + 1) % config.save_every == 0 or step + 1 == config.steps:
            save_state(fabric, config.out / "checkpoint.ckpt", state)
            _save_backbone(student, config.out / "backbone.safetensors", step + 1)
    progress.close()
    writer.close()


def _step(fabric: Fabric, student: nn.Module, optimizer: Any, images: Tensor, teach: _Teaching) -> dict[str, float]:
    """One optimiser step, left out if the loss is not finite; the weighted sum as `loss`, and each target's own."""
    mean = torch.tensor(MEAN, device=images.device).view(1, 3, 1, 1)
    std = torch.tensor(STD, device=images.device).view(1, 3, 1, 1)
    predicted = student((images - mean) / std)
    losses = {t.name: hint_loss(t, p, y) for t, p, y in zip(teach.targets, predicted, teach(images), strict=True)}
    loss = torch.stack([WEIGHTS[target.kind] * losses[target.name] for target in teach.targets]).sum()
    if torch.isfinite(loss):
        fabric.backward(loss)
        fabric.clip_gradients(student, optimizer, max_norm=1.0)
        optimizer.step()
        optimizer.zero_grad()
        return {"loss": loss.item(), **{name: value.item() for name, value in losses.items()}}
    return {"loss": float("nan")}


def _batches(config: PretrainConfig, photos: PhotoStream, first: int, fabric: Fabric) -> Iterator[Tensor]:
    """Batches float32 (N, 3, H, W), 0...255, from step `first` to the last."""
    rest = Subset(photos, range(first * config.batch, len(photos)))
    ahead = 4 if config.workers else None
    for images in DataLoader(rest, config.batch, num_workers=config.workers, prefetch_factor=ahead):
        yield images.to(fabric.device, non_blocking=True).to(torch.float32)


def _save_backbone(student: Any, path: Path, step: int) -> None:
    weights = {k: v.detach().float().cpu().contiguous() for k, v in student.module.swin.state_dict().items()}
    partial = path.with_suffix(".partial")
    save_file(weights, partial, metadata={"made": time.strftime("%Y-%m-%d"), "step": str(step)})
    partial.replace(path)
