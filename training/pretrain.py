"""Distil small pre-trained teachers into a Swin, on photos without labels.

The student's stage outputs predict, through a norm and one linear layer each, the teacher's feature maps of the same
stride (standardised a channel, smooth L1) and its logits (KL divergence): what FitNets (arXiv 1412.6550) calls hints.
These readouts are thrown away afterwards. Nothing of the teachers' structure is assumed but named maps.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from lightning.fabric import Fabric
from safetensors.torch import save_file
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from torch.utils.tensorboard import SummaryWriter

from training.data.photos import PhotoFolder, PhotoStream
from training.progress import Progress
from training.schedule import warmup_cosine
from training.swin import MEAN, STD, build_swin, load_swin, stage_maps, stage_widths
from training.teachers import Teacher

__all__ = ["PretrainConfig", "pretrain"]

# Weight of each target in the sum: features are standardised, so they weigh alike; logits are in nats.
_WEIGHTS = {"features": 1.0, "dense_logits": 0.5, "image_logits": 0.2}


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
        compile: torch.compile the backbone: a quarter faster after about two minutes.
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


@dataclass
class _Target:
    """One map of one teacher: which student stage predicts it and how the error is measured."""

    teacher: int
    place: str
    stage: int
    kind: str
    channels: int
    mean: Tensor = field(default_factory=lambda: torch.zeros(0))
    std: Tensor = field(default_factory=lambda: torch.ones(0))

    @property
    def name(self) -> str:
        return f"{self.teacher}_{self.place}"


def _targets(teachers: Sequence[Teacher], sample: Tensor) -> list[_Target]:
    """Match each teacher map to the student stage of its stride."""
    targets = []
    for index, teacher in enumerate(teachers):
        for place, tensor in teacher(sample).items():
            if tensor.shape[-1] == 1:
                targets.append(_Target(index, place, 3, "image_logits", tensor.shape[1]))
                continue
            stride = sample.shape[-1] // tensor.shape[-1]
            stage = {4: 0, 8: 1, 16: 2, 32: 3}[stride]
            kind = "dense_logits" if place == "logits" else "features"
            targets.append(_Target(index, place, stage, kind, tensor.shape[1]))
    return targets


class _Student(nn.Module):
    """The backbone with one linear layer a target; stage 3's targets also see stage 4 (up-sampled twice)."""

    def __init__(self, swin: SwinTransformer, targets: Sequence[_Target], compiled: bool) -> None:
        super().__init__()
        self.swin = swin
        self.targets = targets
        widths = list(stage_widths(swin))
        widths[2] += widths[3]
        # Swin's stage outputs are a residual sum of any scale, hence the norm.
        self.readouts = nn.ModuleDict(
            {t.name: nn.Sequential(nn.LayerNorm(w := widths[t.stage]), nn.Linear(w, t.channels)) for t in targets}
        )
        # Compiled as a function, so that the parameters keep timm's names.
        self._maps = torch.compile(stage_maps) if compiled else stage_maps

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = self._maps(self.swin, images)  # pyright: ignore
        up = maps[3].repeat_interleave(2, 1).repeat_interleave(2, 2)
        maps[2] = torch.cat([maps[2], up], -1)
        outputs = []
        for target in self.targets:
            x = maps[target.stage]
            if target.kind == "image_logits":
                x = x.mean((1, 2), keepdim=True)
            outputs.append(self.readouts[target.name](x))
        return outputs


def _loss(target: _Target, predicted: Tensor, taught: Tensor) -> Tensor:
    """predicted (N, h, w, C); taught (N, C, h, w) or (N, C, 1, 1)."""
    taught = taught.permute(0, 2, 3, 1).float()
    predicted = predicted.float()
    if target.kind == "features":
        return F.smooth_l1_loss(predicted, (taught - target.mean) / target.std)
    log_p = predicted.flatten(0, 2).log_softmax(-1)
    return F.kl_div(log_p, taught.flatten(0, 2).log_softmax(-1), reduction="batchmean", log_target=True)


def _calibrate(targets: list[_Target], teach: list[list[Tensor]]) -> None:
    """Set each feature target's mean and deviation a channel from a few batches of teacher outputs."""
    for target, maps in zip(targets, zip(*teach, strict=True), strict=True):
        values = torch.cat([m.float().permute(0, 2, 3, 1).flatten(0, 2) for m in maps])
        target.mean = values.mean(0)
        target.std = values.std(0).clamp_min(1e-3)


def pretrain(config: PretrainConfig) -> Path:
    """Run or resume the distillation; returns the path of the backbone's weights (fp32, timm's names).

    A folder `out` with a checkpoint of the same configuration is resumed at the step it was saved.
    Raises FileNotFoundError for missing photos or teachers, ValueError for a loss that is not finite.
    """
    fabric = Fabric(accelerator="auto", devices=1, precision=config.precision)  # pyright: ignore
    fabric.seed_everything(config.seed, verbose=False)
    config.out.mkdir(parents=True, exist_ok=True)

    swin = build_swin(config.backbone, size=(config.size, config.size), drop_path=0.0)
    if config.start is not None:
        load_swin(swin, config.start)
    dtype = torch.bfloat16 if "bf16" in config.precision else torch.float32
    teachers = [Teacher(stem).to(fabric.device).to(dtype).eval() for stem in config.teachers]

    def teach(images: Tensor) -> list[Tensor]:
        outputs = [teacher(images.to(dtype)) for teacher in teachers]
        return [outputs[t.teacher][t.place] for t in targets]

    probe = torch.zeros(1, 3, config.size, config.size, device=fabric.device, dtype=dtype)
    targets = _targets(teachers, probe)
    student = _Student(swin, targets, config.compile)
    optimizer = torch.optim.AdamW(student.parameters(), lr=config.rate, weight_decay=config.weight_decay)
    student, optimizer = fabric.setup(student, optimizer)

    photos = PhotoStream(
        [PhotoFolder.parse(text) for text in config.photos],
        size=config.size,
        length=config.steps * config.batch,
        seed=config.seed,
    )
    state = {"student": student, "optimizer": optimizer, "step": 0, "scales": {}}
    checkpoint = config.out / "checkpoint.ckpt"
    if checkpoint.exists():
        fabric.load(checkpoint, state)
        for target in targets:
            target.mean, target.std = state["scales"][target.name]

    def batches(first: int) -> Iterator[Tensor]:
        rest = Subset(photos, range(first * config.batch, len(photos)))
        loader = DataLoader(
            rest, config.batch, num_workers=config.workers, prefetch_factor=4 if config.workers else None
        )
        for images in loader:
            yield images.to(fabric.device, non_blocking=True).to(torch.float32)

    if not state["scales"]:
        few = [teach(images) for images, _ in zip(batches(0), range(8), strict=False)]
        _calibrate(targets, few)
        state["scales"] = {t.name: (t.mean, t.std) for t in targets}

    mean = torch.tensor(MEAN, device=fabric.device).view(1, 3, 1, 1)
    std = torch.tensor(STD, device=fabric.device).view(1, 3, 1, 1)
    writer = SummaryWriter(config.out / "logs")
    progress = Progress("pretrain", config.steps, start=state["step"])
    student.train()
    for images in batches(state["step"]):
        step = state["step"]
        for group in optimizer.param_groups:
            group["lr"] = warmup_cosine(step, config.steps, peak=config.rate, warmup=config.warmup)
        taught = teach(images)
        predicted = student((images - mean) / std)
        losses = {t.name: _loss(t, p, y) for t, p, y in zip(targets, predicted, taught, strict=True)}
        loss = torch.stack([_WEIGHTS[t.kind] * losses[t.name] for t in targets]).sum()
        if not torch.isfinite(loss):
            raise ValueError(f"loss is {loss.item()} at step {step}; lower --rate (now {config.rate:g}) and run again")
        fabric.backward(loss)
        fabric.clip_gradients(student, optimizer, max_norm=1.0)
        optimizer.step()
        optimizer.zero_grad()
        state["step"] = step + 1
        progress.update(step + 1, loss=loss.item(), **{k: v.item() for k, v in losses.items()})
        if step % 20 == 0:
            writer.add_scalar("loss", loss.item(), step)
            for name, value in losses.items():
                writer.add_scalar(f"loss/{name}", value.item(), step)
        if (step + 1) % config.save_every == 0 or step + 1 == config.steps:
            _save(fabric, checkpoint, state, student, config.out)
    progress.close()
    writer.close()
    return config.out / "backbone.safetensors"


def _save(fabric: Fabric, checkpoint: Path, state: dict, student: nn.Module, out: Path) -> None:
    """Write checkpoint and backbone beside the old ones, then rename: a kill leaves whole files only."""
    partial = checkpoint.with_suffix(".partial")
    fabric.save(partial, state)
    partial.replace(checkpoint)
    weights = {k: v.detach().float().cpu().contiguous() for k, v in student.module.swin.state_dict().items()}  # pyright: ignore
    partial = out / "backbone.partial"
    save_file(weights, partial, metadata={"made": time.strftime("%Y-%m-%d"), "step": str(state["step"])})
    partial.replace(out / "backbone.safetensors")
