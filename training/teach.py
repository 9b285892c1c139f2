"""Train the heads of the room teacher on labelled photos of rooms, so that `label` can label others."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from ptsa_serve.tasks import TASKS as RECORDS
from training.data.evenly import evenly
from training.data.loading import load
from training.data.opening import open_set
from training.data.photoset import PhotoSet
from training.errors import DataError, ResumeError
from training.labelling import TEACHERS
from training.labelling.finding import find_files
from training.labelling.maps import label_of
from training.labelling.room import as_guesses
from training.labelling.room_features import FILES, RoomFeatures
from training.labelling.room_head import FILE, Projection, RoomHead, RoomHeads, load_heads
from training.network.checkpoint import as_stored, sha256, write_whole
from training.options import number_faults, refuse
from training.running.holdout import hold_out
from training.running.progress import Progress
from training.running.resume import note, settle
from training.running.stepping import Precision
from training.scoring.metrics import Figures, metric_for
from training.teaching.cache import BYTES, TASKS, Cache
from training.teaching.heads import HeadConfig, train_head
from training.teaching.projection import fitted

__all__ = ["TeachConfig", "teach"]

SETTINGS = "teach.json"
PROJECTION = "projection.safetensors"
METRICS = "metrics.json"
_TO_FIT = 64  # photos that the projection is fitted to


@dataclass(frozen=True)
class TeachConfig:
    """What `python -m training teach` takes. Raises ConfigError that names every fault at once.

    Args:
        data: folder of NYU, or of a set like it, with labels of segmentation, depth and normals in train/.
        networks: folder of the frozen networks, or right above theirs: deeplabv3_mnv2_ade20k150_logits.tflite,
            mosaic_r3_logits_uint8.tflite, dinov2_vits14_int8.safetensors; FIRST:SECOND, and the first that has one
            counts.
        out: folder for head.safetensors, which `label --teachers '[room=OUT:NETWORKS]'` takes, metrics.json with its
            figures on photos that were kept from training, and the cache: 3 MB a view of a photo, to be deleted
            afterwards. A folder that holds a run is continued; workers and save_every may then differ, nothing else.
        views: of each photo: as it is, and as turned cameras see it.
        members: heads, trained apart; their maps are averaged.
        steps: of each head.
        batch: views of a step.
        width: of a head's layers.
        blocks: of a head.
        rate: peak learning rate.
        weight_decay: of AdamW, for matrices.
        ema: the weights are an average over the steps, which keeps this part of itself a step.
        hold_out: this part of the photos, chosen by seed and name, is not trained on but measured.
        seed: decides which, the order, and initial weights.
        workers: processes that compute features, and later read them.
        precision: 32-true, bf16-mixed, or on a GPU 16-mixed.
        save_every: steps between checkpoints.
    """

    data: Path
    networks: str
    out: Path
    views: int = 6
    members: int = 2
    steps: int = 1100
    batch: int = 8
    width: int = 224
    blocks: int = 4
    rate: float = 1.5e-3
    weight_decay: float = 0.05
    ema: float = 0.998
    hold_out: float = 0.08
    seed: int = 0
    workers: int = 1
    precision: Precision = "bf16-mixed"
    save_every: int = 100

    def __post_init__(self) -> None:
        refuse(number_faults(vars(self)))


@dataclass(frozen=True)
class _Run:
    """data: all photos. taught, held: numbers of those to learn from, and to measure."""

    config: TeachConfig
    networks: tuple[Path, ...]
    data: PhotoSet
    taught: list[int]
    held: list[int]


def teach(config: TeachConfig) -> dict[str, Any]:
    """Make or finish a room teacher's `head.safetensors`; returns what `metrics.json` holds.

    A run that is killed goes on where it was. Raises TrainingError for settings, photos, networks or a folder that
    cannot be used and for losses that are not finite, OSError for files that cannot be read or written.
    """
    run = _opened(config)
    projection = _projection(run)
    jobs = [(photo, view) for view in range(config.views) for photo in run.taught]
    held = [(photo, 0) for photo in run.held]
    cache = Cache(config.out / "cache", run.data, [*held, *jobs], run.networks, projection)
    _fill(cache, config.workers)
    heads = []
    for member in range(config.members):
        note(f"head {member + 1} of {config.members}")
        given: dict[str, Any] = {field.name: getattr(config, field.name) for field in fields(HeadConfig)}
        own = HeadConfig(**{**given, "seed": config.seed + member})
        folder = config.out / f"head-{member + 1}"
        heads.append(train_head(own, folder, cache, jobs, workers=config.workers, every=config.save_every))
    weights = RoomHeads(projection, heads).state_dict()
    write_whole(config.out / FILE, save({name: as_stored(tensor).contiguous() for name, tensor in weights.items()}))
    found: dict[str, Any] = {"held_out_photos": len(held)}
    if held:
        # Of what was written: matrices are rounded to fp16.
        whole = load_heads(config.out / FILE)
        each = [RoomHeads(whole.projection, [cast(RoomHead, head)]).eval() for head in whole.heads]
        found["figures"] = _figures(run, cache, whole)
        found["of_each_head"] = {f"head_{number}": _figures(run, cache, one) for number, one in enumerate(each, 1)}
    write_whole(config.out / METRICS, json.dumps(found, indent=2).encode() + b"\n")
    return found


def _opened(config: TeachConfig) -> _Run:
    """All that can be wrong with the arguments is found here."""
    networks = find_files("room", config.networks, FILES, TEACHERS["room"].modules)
    data = open_set("nyu", config.data, "train")
    if missing := [task for task in TASKS if task not in data.tasks]:
        raise DataError(
            f"{config.data} has no labels of {', '.join(missing)}; a room teacher learns {', '.join(TASKS)}"
        )
    _, kept = hold_out(data, config.hold_out, config.seed)
    names = {kept.photo_path(number) for number in range(len(kept))} if kept else set()
    held = [number for number in range(len(data)) if data.photo_path(number) in names]
    taught = [number for number in range(len(data)) if data.photo_path(number) not in names]
    photos = "\n".join(data.photo_path(number).stem for number in range(len(data)))
    settings = {
        "networks": {path.name: sha256(path) for path in networks},
        "number_of_photos": len(data),
        "photos": hashlib.sha256(photos.encode("utf-8", "replace")).hexdigest(),
        "views": config.views,
        "hold_out": config.hold_out,
        "seed": config.seed,
    }
    settle(config.out / SETTINGS, settings)
    return _Run(config, networks, data, taught, held)


def _projection(run: _Run) -> Projection:
    """That of an earlier run, or a new one."""
    path = run.config.out / PROJECTION
    projection = Projection()
    if path.exists():
        try:
            projection.load_state_dict(load_file(path))
        except (SafetensorError, RuntimeError):
            raise ResumeError(
                f"{path} is damaged; name another --out folder, for the cache was made with what it held"
            ) from None
        return projection
    networks = RoomFeatures(*run.networks)
    some = evenly(run.taught, _TO_FIT)

    def seen() -> Iterator[Any]:
        with Progress("look", len(some), unit="photo") as progress:
            for number, photo in enumerate(some, 1):
                yield networks(run.data[photo].image)
                progress.update(number)

    with torch.no_grad():
        projection = fitted(seen())
    write_whole(path, save(projection.state_dict()))
    return projection


def _fill(cache: Cache, workers: int) -> None:
    """Compute the files of the cache that are not there."""
    todo = cache.missing()
    if not todo:
        return
    note(f"the cache takes {len(todo) * BYTES / 1e9:.1f} GB more")
    with Progress("cache", len(todo), unit="view") as progress:
        for number, _ in enumerate(load(cache, batch_size=None, sampler=todo, num_workers=workers), 1):
            progress.update(number)


@torch.no_grad()
def _figures(run: _Run, cache: Cache, heads: RoomHeads) -> dict[str, Figures]:
    """Of held-out photos, at the size of their labels."""
    metrics = {task: metric_for(RECORDS[task]) for task in TASKS}
    for number in run.held:
        seen = cache.read((number, 0))
        guesses = as_guesses(heads(*(seen[name][None] for name in ("coarse", "fine", "photo"))))
        photo = run.data[number]
        for task, metric in metrics.items():
            found = label_of(RECORDS[task].kind, guesses[task], photo.image.shape[:2], 0).values
            metric.update(found, photo.labels[task])
    return {task: metric.compute() for task, metric in metrics.items()}
