"""What can a GPU do with this model? Every engine on it, every form, against PyTorch; each map against the CPU's.

A row is an engine with its form, or a way of PyTorch, at one batch: `ms` of a run, copies in and out included, photos
a second, and for engines the largest difference of each task's map from ONNX Runtime's fp32 on the CPU (of classes: the
share of pixels). fp32 must stay within the tolerances of the parity gate (TF32 is off), every form must reproduce the
model's sample as a server would ask of it. Plans are built in a copy of the artifact, which is kept.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu_torch import torch_network, torch_runs
from benchmarks.measurement import Measurement, alternate
from export.errors import ExportError
from export.parity import TOLERANCES
from export.plans import FLAVOURS, PlansConfig, build_plans
from ptsa_serve.artifact import Artifact
from ptsa_serve.difference import difference
from ptsa_serve.engines import ENGINES, Engine, EngineOptions, load_engine
from ptsa_serve.errors import EngineError, PTSAError
from ptsa_serve.images import ImageLimits, decode
from ptsa_serve.predictor import Predictor
from ptsa_serve.resize import shrink
from ptsa_serve.sizes import Size
from training.errors import TrainingError

__all__ = ["GpuConfig", "gpu_table", "measure_gpu"]

Report = Callable[[str], None]
Rows = dict[str, dict[str, Any]]

_REFERENCE = "onnxruntime"


@dataclass(frozen=True)
class GpuConfig:
    """What `measure_gpu` needs.

    artifact: the model. work: folder for its copy with plans. size: (H, W) of the photos. batches: photos of a run.
    checkpoint: the artifact's own, for PyTorch; None: random weights. device: PyTorch's name of the GPU.
    """

    artifact: Artifact
    work: Path
    size: Size
    batches: tuple[int, ...]
    rounds: int
    checkpoint: Path | None = None
    device: str = "cuda"


@dataclass
class _Found:
    """rows as measured; missing: what was not, and why; wrong: sentences on maps that are too far off."""

    rows: Rows = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)


def measure_gpu(config: GpuConfig, report: Report = lambda _: None) -> tuple[Measurement, list[str]]:
    """The measurement, and a sentence for each engine whose maps are wrong.

    Raises EngineError, in one sentence, on a machine without a GPU that PyTorch can use.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        build = torch.version.cuda or "none"
        raise EngineError(
            f"there is no NVIDIA GPU here that PyTorch {torch.__version__} (built for CUDA: {build}) can use; run this "
            "on a machine with one, its driver and a PyTorch for CUDA"
        )
    found = _Found()
    artifact = _with_plans(config, found, report)
    _measure_engines(artifact, config, found, report)
    _measure_torch(artifact, config, found, report)
    conditions: dict[str, str | int | float] = {
        **_gpu(config.device),
        "torch": torch.__version__,
        "model": f"{artifact.manifest.name}@{artifact.manifest.version}",
        "size": f"{config.size[1]}x{config.size[0]}",
        "rounds": config.rounds,
        "tf32": "off",
        "weights_of_torch": "the checkpoint's" if config.checkpoint else "random",
        **{f"without {name}": reason for name, reason in found.missing.items()},
    }
    return Measurement("What can a GPU do with this model?", found.rows, conditions), found.wrong


def _gpu(device: str) -> dict[str, str]:
    if device != "cuda":
        return {"gpu": "none"}
    capability = ".".join(map(str, torch.cuda.get_device_capability()))
    return {"gpu": torch.cuda.get_device_name(), "compute_capability": capability, "cuda": torch.version.cuda or "none"}


def gpu_table(measurement: Measurement) -> str:
    """A line a row, the fastest photos first, and what is missing."""
    rows = sorted(measurement.figures.items(), key=lambda row: -row[1]["photos_per_second"])
    width = max((len(name) for name, _ in rows), default=0)
    lines = [
        f"  {name:<{width}}  {row['ms']:8.2f} ms  {row['photos_per_second']:8.1f} photos/s  "
        + ", ".join(f"{task} {value:.1e}" for task, value in row.get("differences", {}).items())
        for name, row in rows
    ]
    conditions = {**measurement.conditions, **measurement.machine}
    missing = [f"  {name}: {text}" for name, text in conditions.items() if name.startswith("without ")]
    others = ", ".join(f"{name} {text}" for name, text in conditions.items() if not name.startswith("without "))
    return "\n".join([measurement.question, *lines, *missing, "  " + others])


def _with_plans(config: GpuConfig, found: _Found, report: Report) -> Artifact:
    """A copy of the artifact in the work folder, with the plans that can be built here."""
    folder = config.work / "model"
    if not _copy_of(config.artifact, folder):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(config.artifact.folder, folder)
    for runtime in FLAVOURS:
        for form in config.artifact.variants.forms:
            plans = PlansConfig(
                folder, runtime, (config.size,), config.batches, precision=form.precision, branches=form.branches
            )
            try:
                build_plans(plans, report)
            except (ExportError, PTSAError) as error:
                found.missing[f"{runtime} {form}"] = str(error)
    return Artifact.open(folder)


def _copy_of(artifact: Artifact, folder: Path) -> bool:
    """Whether the folder holds this model, be it with plans more."""
    try:
        files = Artifact.open(folder).manifest.files
    except PTSAError:
        return False
    own = [file for file in artifact.manifest.files if not file.plan]
    return [file for file in files if not file.plan] == own


def _engines(artifact: Artifact, found: _Found) -> Iterator[tuple[str, EngineOptions]]:
    """Engines on a GPU, in every form that they offer."""
    for name, row in ENGINES.items():
        if row.device != "gpu":
            continue
        offers = row.offers(artifact)
        if not offers:
            try:
                row.load(artifact, EngineOptions()).close()
            except PTSAError as error:
                found.missing[name] = str(error)
        yield from ((name, options) for options in offers)


def _measure_engines(artifact: Artifact, config: GpuConfig, found: _Found, report: Report) -> None:
    photos = _photos(artifact, config)
    reference = load_engine(_REFERENCE, artifact)
    expected = reference.run(photos)
    reference.close()
    for name, options in _engines(artifact, found):
        label = f"{name} {options.precision} {options.branches}"
        report(f"measuring {label}")
        try:
            engine = load_engine(name, artifact, options)
        except PTSAError as error:
            found.missing[label] = str(error)
            continue
        try:
            differences = _differences(artifact, engine, photos, expected)
            found.wrong += _faults(artifact, engine, label, differences)
            rows = _rows(label, engine.run, photos, config)
            found.rows |= {row: {**figures, "differences": differences} for row, figures in rows.items()}
        except EngineError as error:
            found.wrong.append(f"{label}: {error}")
        finally:
            engine.close()


def _differences(
    artifact: Artifact, engine: Engine, photos: np.ndarray, expected: Mapping[str, np.ndarray]
) -> dict[str, float]:
    maps = engine.run(photos)
    tasks = artifact.manifest.task_table()
    return {name: difference(task.kind, maps[name], expected[name]).worst for name, task in tasks.items()}


def _faults(artifact: Artifact, engine: Engine, label: str, differences: Mapping[str, float]) -> list[str]:
    """What is wrong with the maps of an engine, a sentence each."""
    faults = []
    tasks = artifact.manifest.task_table()
    for name, value in differences.items():
        tolerance = TOLERANCES[tasks[name].kind]
        if engine.precision == "fp32" and not value <= tolerance:
            faults.append(f"{label}: {name} differs by {value:.2g}, allowed {tolerance:g}")
    try:
        Predictor(artifact, engine).verify()
    except PTSAError as error:
        faults.append(f"{label}: {error}")
    return faults


def _measure_torch(artifact: Artifact, config: GpuConfig, found: _Found, report: Report) -> None:
    # As in the engines: products of fp32 are products of fp32.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        network = torch_network(artifact.manifest, config.device, config.checkpoint)
    except TrainingError as error:
        found.missing["torch"] = str(error)
        return
    photos = _photos(artifact, config)
    for name, run in torch_runs(network, config.device).items():
        report(f"measuring torch {name}")
        try:
            found.rows |= _rows(f"torch {name}", run, photos, config)
        except RuntimeError as error:  # what compiles may lack a compiler, or refuse the network
            found.missing[f"torch {name}"] = str(error).splitlines()[0][:200]


def _rows(label: str, run: Callable[[np.ndarray], object], photos: np.ndarray, config: GpuConfig) -> Rows:
    runs = {str(batch): partial(run, photos[:batch]) for batch in config.batches}
    return {
        f"{label}, batch {batch}": {"ms": ms, "photos_per_second": 1000 * int(batch) / ms}
        for batch, ms in alternate(runs, config.rounds).items()
    }


def _photos(artifact: Artifact, config: GpuConfig) -> np.ndarray:
    """The sample and its mirror images, at the size that is measured: as many as the largest batch."""
    pixels = shrink(decode(artifact.sample()[0], ImageLimits()).pixels, config.size)
    kinds = (pixels, pixels[:, ::-1], pixels[::-1], pixels[::-1, ::-1])
    return np.stack([kinds[index % len(kinds)] for index in range(max(config.batches))])
