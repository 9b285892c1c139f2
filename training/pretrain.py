"""Distil small pre-trained teachers into a Swin, on photos without labels: the run around `distilling`."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from lightning.fabric import Fabric
from safetensors.torch import save
from torch import Tensor
from torch.utils.data import Subset

from training.backbones import MEAN, STD, build_backbone, known_backbones
from training.backbones.loading import load_backbone
from training.data.loading import load
from training.data.photos import PhotoFolder, PhotoStream
from training.distilling.distillation import WEIGHTS, Student, Target, calibrate, hint_loss, match_targets
from training.distilling.teachers import Teacher
from training.network.checkpoint import sha256, write_whole
from training.options import MAY_CHANGE, number_faults, refuse
from training.rules.base import Batch
from training.rules.weighted_sum import WeightedSum
from training.running.loop import Plan, Work, train
from training.running.parallel import Share, one_voice, share_of
from training.running.resume import announce, claim, say_how_far, write_state
from training.running.stepping import Optimisation, Precision, make_fabric

__all__ = ["PretrainConfig", "pretrain"]

# In the output folder: the result, and what a killed run continues from.
RESULT = "backbone.safetensors"
RESUME = "checkpoint.ckpt"


@dataclass(frozen=True)
class PretrainConfig:
    """What `python -m training pretrain` takes. Raises ConfigError that names every fault at once.

    Args:
        photos: folders of photos, searched recursively, each PATH or PATH=WEIGHT (how often it is drawn).
        teachers: stems of teachers: STEM.json and STEM.safetensors.
        out: folder for backbone.safetensors, the checkpoint and TensorBoard logs. A folder that holds a run is
            continued; out, workers and save_every may then differ, nothing else.
        backbone: swin_nano, swin_tiny, swin_small, swin_base, swin_large, pvt_v2_b0, pvt_v2_b1 or pvt_v2_b2.
        start: weights to start from (safetensors, timm's names); random when left out.
        steps: optimiser steps in all.
        batch: photos that pass together.
        accumulate: so many passes of `batch` make a step.
        size: side of the square crops, a multiple of 32; 224 fills every window.
        rate: peak learning rate.
        warmup: steps of linear warm-up before the cosine.
        weight_decay: of AdamW.
        ema: store the average of the weights over the steps, which keeps this part of itself a step; 0 = the last ones.
        seed: decides photos, crops and initial weights.
        workers: processes that decode photos.
        precision: 32-true, bf16-mixed, or on a GPU 16-mixed.
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
    accumulate: int = 1
    size: int = 224
    rate: float = 1e-3
    warmup: int = 100
    weight_decay: float = 0.05
    ema: float = 0.0
    seed: int = 0
    workers: int = 1
    precision: Precision = "bf16-mixed"
    compile: bool = False
    save_every: int = 100

    def __post_init__(self) -> None:
        faults = number_faults(vars(self))
        faults += [f"--{name} names none; name at least one" for name in ("photos", "teachers") if not vars(self)[name]]
        if self.size % 32:
            faults.append(f"--size is {self.size}; it must be a multiple of 32")
        if self.backbone not in known_backbones():
            faults.append(f"--backbone {self.backbone!r} is unknown; known are {', '.join(known_backbones())}")
        refuse(faults)


class _Teaching:
    """The teachers side by side, and what of theirs is learnt."""

    def __init__(self, config: PretrainConfig, device: torch.device) -> None:
        self._device = device
        self._dtype = torch.bfloat16 if "bf16" in config.precision else torch.float32
        self._teachers = [Teacher(stem).to(device).to(self._dtype).eval() for stem in config.teachers]
        probe = torch.zeros(1, 3, config.size, config.size, device=device, dtype=self._dtype)
        self.targets: list[Target] = match_targets(self._teachers, probe)

    def __call__(self, images: Tensor) -> list[Tensor]:
        """The map of each target for images (N, 3, H, W), 0...255."""
        outputs = [teacher(images.to(self._dtype)) for teacher in self._teachers]
        return [outputs[target.teacher][target.place] for target in self.targets]

    def scales(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Mean and deviation of each target, by its name."""
        return {target.name: (target.mean, target.std) for target in self.targets}

    def scale(self, scales: dict[str, tuple[Tensor, Tensor]]) -> None:
        """Set them from `scales`, on the device of the teachers."""
        for target in self.targets:
            target.mean, target.std = (values.to(self._device) for values in scales[target.name])


def pretrain(config: PretrainConfig) -> Path:
    """Run or resume the distillation; returns the path of the backbone's weights (fp32, timm's names).

    A folder `out` that holds this run is continued at the step it was saved, a finished run is left as it is. Raises
    TrainingError for settings, photos, teachers, weights or a folder that cannot be used and for losses or gradients
    that are not finite, OSError for files that cannot be read or written.
    """
    fabric = make_fabric(config.precision)
    with one_voice(fabric):
        return _pretrain(config, fabric)


def _pretrain(config: PretrainConfig, fabric: Fabric) -> Path:
    share_of(config.batch, "--photos", fabric)
    fabric.seed_everything(config.seed, verbose=False)
    folders = [PhotoFolder.parse(text) for text in config.photos]
    photos = PhotoStream(
        folders, size=config.size, length=config.steps * config.accumulate * config.batch, seed=config.seed
    )
    teach = _Teaching(config, fabric.device)
    settings = _settings(config, folders, teach, fabric)
    run = _student(config, teach, fabric)
    result = config.out / RESULT
    if state := claim(config.out, RESUME, RESULT, settings):
        run.restore(state)
        teach.scale(state["scales"])
        say_how_far(config.out, run.step, config.steps)
    else:
        # In every process from the same photos.
        few = _images(config, photos, config.batch, range(min(8, config.steps)), fabric)
        calibrate(teach.targets, [teach(images) for images in few])

    def save() -> None:
        write_state(config.out / RESUME, {**run.state(), "scales": teach.scales()}, settings)
        _save_backbone(run, result)

    if run.step < config.steps:
        announce(settings)
        work = Work(
            batches=partial(_batches, config, photos, fabric),
            losses=partial(_losses, run, teach),
            weights={target.name: WEIGHTS[target.kind] for target in teach.targets},
            save=save,
        )
        plan = Plan("pretrain", config.out, config.steps, config.warmup, config.seed, config.save_every)
        train(run, WeightedSum(), plan, work)
    if fabric.is_global_zero:
        # Made from the state, again where a kill came between the two.
        _save_backbone(run, result)
    return result


def _student(config: PretrainConfig, teach: _Teaching, fabric: Fabric) -> Optimisation:
    backbone = build_backbone(config.backbone)
    if config.start is not None:
        load_backbone(backbone, config.start)
    student = Student(backbone, teach.targets, config.compile)
    group = {"params": list(student.parameters()), "peak": config.rate}
    optimizer = torch.optim.AdamW([group], lr=config.rate, weight_decay=config.weight_decay)
    return Optimisation(fabric, student, optimizer, max_norm=1.0, ema=config.ema)


def _losses(run: Optimisation, teach: _Teaching, images: Tensor) -> dict[str, Tensor]:
    """The loss of each target, for images float32 (N, 3, H, W), 0...255."""
    mean = torch.tensor(MEAN, device=images.device).view(1, 3, 1, 1)
    std = torch.tensor(STD, device=images.device).view(1, 3, 1, 1)
    predicted = run.model((images - mean) / std)
    return {t.name: hint_loss(t, p, y) for t, p, y in zip(teach.targets, predicted, teach(images), strict=True)}


def _images(config: PretrainConfig, source: Any, batch: int, passes: range, fabric: Fabric) -> Iterator[Tensor]:
    """`batch` images of `source` for each of `passes`, float32 (N, 3, H, W), 0...255."""
    some = Subset(source, range(passes.start * batch, passes.stop * batch))
    ahead = 4 if config.workers else None
    for images in load(some, batch_size=batch, num_workers=config.workers, prefetch_factor=ahead):
        yield images.to(fabric.device, non_blocking=True).to(torch.float32)


def _batches(
    config: PretrainConfig, photos: PhotoStream, fabric: Fabric, first: int, last: int
) -> Iterator[list[Batch]]:
    """The batches of each step: `accumulate` of them."""
    share, k = Share(photos, config.batch, "--photos", fabric), config.accumulate
    images = _images(config, share, share.size, range(first * k, last * k), fabric)
    for step in range(first, last):
        yield [Batch(f"the photos of step {step}", some, 1 / k) for some in islice(images, k)]


def _save_backbone(run: Optimisation, path: Path) -> None:
    trained = cast(Student, run.result).backbone.trunk.state_dict()
    weights = {name: tensor.detach().float().cpu().contiguous() for name, tensor in trained.items()}
    # No date: written again, it is the same file, and a run that started from it still knows it.
    write_whole(path, save(weights, metadata={"step": str(run.step)}))


def _settings(config: PretrainConfig, folders: list[PhotoFolder], teach: _Teaching, fabric: Fabric) -> dict[str, Any]:
    """All that the weights depend on, as JSON: compared when a run goes on."""
    settings = {name: value for name, value in asdict(config).items() if name not in MAY_CHANGE}
    return settings | {
        "start": sha256(config.start) if config.start else None,
        "photos": {str(number): _described(folder) for number, folder in enumerate(folders, 1)},
        "teachers": {
            str(number): {suffix: sha256(Path(f"{stem}.{suffix}")) for suffix in ("json", "safetensors")}
            for number, stem in enumerate(config.teachers, 1)
        },
        "targets": {target.name: WEIGHTS[target.kind] for target in teach.targets},
        "device": fabric.device.type,
        "processes": fabric.world_size,
    }


def _described(folder: PhotoFolder) -> dict[str, Any]:
    files = folder.files()
    names = "\n".join(str(path.relative_to(folder.path)) for path in files)
    digest = hashlib.sha256(os.fsencode(names)).hexdigest()
    return {"photos": len(files), "names_sha256": digest, "weight": folder.weight}
