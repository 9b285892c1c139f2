"""The one pipeline: HTTP, BentoML, command line and benchmarks all go through `Predictor`."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from ptsa_serve.artifact import Artifact
from ptsa_serve.difference import difference
from ptsa_serve.engines.base import Engine
from ptsa_serve.errors import EngineError, UnknownTask
from ptsa_serve.images import FORMATS, ImageLimits, OpenPhoto, open_photo
from ptsa_serve.prediction import Maps, PhotoInfo, Prediction
from ptsa_serve.resize import Grid, shrink, stretch
from ptsa_serve.tasks import Kind, Task
from ptsa_serve.variants import Precision

__all__ = ["Predictor", "Prepared", "ScaledMaps", "tolerance"]

# How far the maps of the sample may lie from those in the artifact, by the mean of `difference`. Kernels of other
# machines and bf16 engines stay well below; wrong weights, a wrong graph or wrong colours lie far above.
_VERIFY: dict[Kind, float] = {
    "classes": 0.02,
    "metres": 0.01,
    "unit_vectors": 0.01,
    "probability": 0.01,
    "boundary": 0.01,
}
# 8 bits turn more pixels than that where no metric notices: whether they are good is measured when they are made.
_WIDER: dict[Precision, float] = {"int8": 3.0}


@dataclass(frozen=True, slots=True)
class Prepared:
    """A photo ready for the engine: `pixels` uint8 (H, W, 3) with (H, W) = `size`, one of the model's.

    photo: what the maps will be scaled to. image: uint8 (height, width, 3), the whole photo, where it was
    asked for. decode_ms: time that decoding and resizing took.
    """

    pixels: np.ndarray
    size: tuple[int, int]
    photo: PhotoInfo
    decode_ms: float
    image: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class ScaledMaps(Mapping[str, np.ndarray]):
    """`maps` at `grid` (height, width), each scaled when it is looked up."""

    maps: Maps
    tasks: Mapping[str, Task]
    grid: tuple[int, int]

    def __getitem__(self, name: str) -> np.ndarray:
        return stretch(self.maps[name], self.grid, self.tasks[name].kind)

    def __iter__(self) -> Iterator[str]:
        return iter(self.maps)

    def __len__(self) -> int:
        return len(self.maps)


class Predictor:
    """An artifact, the engine that runs it, and the limits of a photo. Everything but `run` is thread-safe;
    `run` is as thread-safe as the engine.
    """

    def __init__(self, artifact: Artifact, engine: Engine, limits: ImageLimits | None = None) -> None:
        self.artifact = artifact
        self.engine = engine
        self.limits = limits or ImageLimits()
        self.tasks = artifact.manifest.task_table()

    def open(self, data: bytes, deadline: float | None = None) -> OpenPhoto:
        """The photo with its header read and allowed; the work ends soon after `deadline` (a time.monotonic() value).

        Raises the errors of `ptsa_serve.images.inspect`.
        """
        return open_photo(data, self.limits, deadline=deadline)

    def prepare(self, photo: bytes | OpenPhoto, *, keep_image: bool = False, deadline: float | None = None) -> Prepared:
        """Decode, choose the size, resize. `keep_image` keeps the whole photo too (for overlays).

        photo: its bytes, with `deadline` as in `open`, or what `open` gave. Raises the errors of
        `ptsa_serve.images.decode`.
        """
        start = time.perf_counter()
        opened = photo if isinstance(photo, OpenPhoto) else self.open(photo, deadline)
        size = self.engine.sizes.choose(opened.header.height, opened.header.width)
        decoded = opened.decode(None if keep_image else size)
        pixels = shrink(decoded.pixels, size)
        info = PhotoInfo(decoded.width, decoded.height, decoded.orientation)
        elapsed = (time.perf_counter() - start) * 1000
        return Prepared(pixels, size, info, elapsed, decoded.pixels if keep_image else None)

    def run(self, batch: Sequence[Prepared], tasks: Sequence[str] | None = None, *, alone: bool = True) -> list[Maps]:
        """Run photos of one size; the maps of each at model size, by task, of `tasks` alone (None: all).

        alone: as of `Engine.run`. Raises EngineError.
        """
        sizes = {prepared.size for prepared in batch}
        if len(sizes) != 1:
            raise EngineError(f"a batch needs photos of one size, got {sorted(sizes)}")
        maps = self.engine.run(np.stack([prepared.pixels for prepared in batch]), tasks, alone=alone)
        return [{name: values[index] for name, values in maps.items()} for index in range(len(batch))]

    def finish(
        self,
        prepared: Prepared,
        maps: Maps,
        tasks: Sequence[str] | None = None,
        size: Grid = "photo",
        *,
        lazily: bool = False,
    ) -> Prediction:
        """Scale the maps of `tasks` (default all) to the photo's size, or leave them at the model's.

        `lazily` scales a map each time that it is looked up and keeps none: who uses one after another then holds
        one, not all (40 megapixels: 480 MB, not 840). Raises UnknownTask.
        """
        start = time.perf_counter()
        chosen = self.choose(tasks)
        grid = (prepared.photo.height, prepared.photo.width) if size == "photo" else prepared.size
        stretched = ScaledMaps({name: maps[name] for name in chosen}, self.tasks, grid)
        scaled = stretched if lazily else dict(stretched)
        manifest = self.artifact.manifest
        return Prediction(
            maps=scaled,
            tasks={name: self.tasks[name] for name in chosen},
            photo=prepared.photo,
            size=grid,
            model=(manifest.name, manifest.version),
            notes=manifest.notes,
            timings_ms={"decode": prepared.decode_ms, "scale": (time.perf_counter() - start) * 1000},
        )

    def choose(self, tasks: Sequence[str] | None) -> tuple[str, ...]:
        """The names of `tasks` in the model's order; all for None. Raises UnknownTask, naming those that
        exist.
        """
        if tasks is None:
            return tuple(self.tasks)
        for name in tasks:
            if name not in self.tasks:
                raise UnknownTask(name, self.tasks)
        return tuple(name for name in self.tasks if name in tasks)

    def predict(
        self, data: bytes, tasks: Sequence[str] | None = None, size: Grid = "photo", *, keep_image: bool = False
    ) -> Prediction:
        """`prepare`, `run` and `finish` of one photo."""
        chosen = self.choose(tasks)
        prepared = self.prepare(data, keep_image=keep_image)
        start = time.perf_counter()
        maps = self.run([prepared], chosen)[0]
        model_ms = (time.perf_counter() - start) * 1000
        prediction = self.finish(prepared, maps, tasks, size)
        return replace(prediction, timings_ms={**prediction.timings_ms, "model": model_ms})

    def verify(self) -> dict[str, float]:
        """Reproduce the artifact's sample: how far each task's map lies from it (the mean of `difference`).

        Raises ArtifactError without a sample, EngineError where a map lies too far.
        """
        photo, expected = self.artifact.sample()
        found = self.run([self.prepare(photo)])[0]
        errors = {n: difference(task.kind, found[n], expected.get(n)).mean for n, task in self.tasks.items()}
        precision = self.engine.precision
        wrong = [name for name, error in errors.items() if not error <= tolerance(self.tasks[name].kind, precision)]
        if wrong:
            figures = ", ".join(f"{name} {errors[name]:.3g}" for name in wrong)
            raise EngineError(
                f"{self.engine.name} {self.engine.version} does not reproduce the model's sample (off by: {figures}); "
                "install another version of it, or make the model again with `python -m export`"
            )
        return errors

    def info(self) -> dict[str, Any]:
        """What `GET /v1/models/{name}` answers."""
        manifest = self.artifact.manifest.model_dump(mode="json", exclude_none=True)
        shown = (
            "name",
            "version",
            "tasks",
            "tree",
            "backbone",
            "input",
            "counts",
            "metrics",
            "parity",
            "notes",
            "provenance",
        )
        return {
            **{key: manifest[key] for key in shown},
            "forms": [asdict(form) for form in self.artifact.variants.forms],
            "engine": {
                "name": self.engine.name,
                "version": self.engine.version,
                "precision": self.engine.precision,
                "branches": self.engine.branches,
            },
            "limits": {
                "max_bytes": self.limits.max_bytes,
                "max_pixels": self.limits.max_pixels,
                "min_side": self.limits.min_side,
                "max_side": self.limits.max_side,
                "formats": list(FORMATS),
            },
        }


def tolerance(kind: Kind, precision: Precision) -> float:
    """How far a map may lie from what it should be, by the mean of `difference`, for readiness."""
    return _VERIFY[kind] * _WIDER.get(precision, 1.0)
