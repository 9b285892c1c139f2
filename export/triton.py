"""A model repository of Triton Inference Server from an artifact: a model for each size, the graph and nothing else.

Layout: NAME/config.pbtxt, NAME/1/model.onnx/ (a folder, as for every ONNX model with a file of weights: the graph
model.onnx and its data) or NAME/1/model-9.0.plan, and a file of labels for each task of classes.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from export.errors import ExportError
from export.outputs import refuse_unwritable
from export.triton_config import Model, config_text
from ptsa_serve.artifact import Artifact, external_data
from ptsa_serve.engines.tensorrt import FLAVOUR
from ptsa_serve.files import replace_folder, write_file
from ptsa_serve.manifest import FileRecord, Manifest
from ptsa_serve.sizes import Size
from ptsa_serve.tasks import Task
from ptsa_serve.variants import Branches, Form, Precision

__all__ = ["Backend", "TritonConfig", "write_repository"]

Backend = Literal["onnxruntime", "tensorrt"]
Report = Callable[[str], None]


@dataclass(frozen=True)
class TritonConfig:
    """What `write_repository` needs.

    artifact, out: folders. backend: Triton's, onnxruntime for graphs, tensorrt for plans that are in the artifact.
    max_batch: photos that Triton may put into one run (for plans: what they hold). delay_us: longest wait for more
    photos, microseconds; 0: whatever waits already. precision, branches: None as in `EngineOptions`.
    """

    artifact: Path
    out: Path
    backend: Backend = "onnxruntime"
    max_batch: int = 8
    delay_us: int = 0
    precision: Precision | None = None
    branches: Branches | None = None


def write_repository(config: TritonConfig, report: Report = lambda _: None) -> list[str]:
    """Write the repository, whole or not at all; the names of its models.

    Raises ExportError if `out` exists or there is no plan to use, ArtifactError for a form that is not there.
    """
    if config.out.exists():
        raise ExportError(f"{config.out} exists; name a new folder")
    refuse_unwritable(config.out)
    artifact = Artifact.open(config.artifact)
    form = artifact.variants.form(config.precision, config.branches)
    with replace_folder(config.out) as folder:
        write = _write_plans if config.backend == "tensorrt" else _write_graphs
        names = write(artifact, form, config, folder)
    for name in names:
        report(f"{config.out / name}")
    return names


def _write_graphs(artifact: Artifact, form: Form, config: TritonConfig, folder: Path) -> list[str]:
    loose = folder / ".graphs"
    artifact.write_external_data(loose)
    names = []
    tasks = tuple(artifact.manifest.task_table())
    for variant in (v for v in artifact.variants.all if v.form == form and set(v.tasks) == set(tasks)):
        model = _model(artifact.manifest, variant.size, variant.tasks, config)
        _write_config(folder, model)
        place = folder / model.name / "1" / "model.onnx"
        place.mkdir(parents=True)
        (loose / variant.path).replace(place / "model.onnx")
        data = external_data(variant.weights)
        # A copy for each size: the checker of onnx refuses files with links.
        shutil.copyfile(loose / data, place / data)
        names.append(model.name)
    shutil.rmtree(loose)
    return names


def _write_plans(artifact: Artifact, form: Form, config: TritonConfig, folder: Path) -> list[str]:
    plans = [
        record
        for record in artifact.manifest.files
        if record.plan and record.plan.runtime == FLAVOUR.name and record.precision == form.precision
        if record.branches == form.branches and record.tasks == tuple(artifact.manifest.task_table())
    ]
    if not plans:
        raise ExportError(
            f"{artifact.folder} has no {form} plan of {FLAVOUR.title}; build one on the GPU that Triton will use, with "
            f"its version of {FLAVOUR.title}: `python -m export tensorrt {artifact.folder}`"
        )
    names = []
    for size in dict.fromkeys(shape[1:] for record in plans if record.plan for shape in record.plan.shapes):
        own = [record for record in plans if record.plan and size in {shape[1:] for shape in record.plan.shapes}]
        model = _model(artifact.manifest, size, own[0].tasks or (), config, own)
        _write_config(folder, model)
        for capability, name in model.plans.items():
            (record,) = [record for record in own if record.plan and record.plan.compute_capability == capability]
            place = folder / model.name / "1"
            place.mkdir(exist_ok=True)
            shutil.copyfile(artifact.folder / record.path, place / name)
        names.append(model.name)
    return names


def _model(
    manifest: Manifest, size: Size | None, tasks: Sequence[str], config: TritonConfig, plans: Sequence[FileRecord] = ()
) -> Model:
    table = manifest.task_table()
    capabilities = [record.plan.compute_capability for record in plans if record.plan]
    if len(set(capabilities)) != len(capabilities):
        raise ExportError(
            f"two plans for {size} are for GPUs of compute capability {max(capabilities, key=capabilities.count)}, by "
            "which Triton chooses; keep an artifact for each kind of GPU"
        )
    shapes = [shape for record in plans[:1] if record.plan for shape in record.plan.shapes]
    profiles = tuple(index for index, shape in enumerate(shapes) if shape[1:] == size)
    return Model(
        name=f"{manifest.name}_{size[0]}x{size[1]}" if size else manifest.name,
        backend=config.backend,
        input_name=manifest.input.name,
        size=size,
        tasks=tuple(table[name] for name in tasks),
        max_batch=max((shapes[index][0] for index in profiles), default=config.max_batch),
        delay_us=config.delay_us,
        profiles=profiles,
        preferred=tuple(shapes[index][0] for index in profiles),
        plans={str(capability): f"model-{capability}.plan" for capability in capabilities},
    )


def _write_config(folder: Path, model: Model) -> None:
    write_file(folder / model.name / "config.pbtxt", config_text(model).encode())
    for task in model.tasks:
        if task.classes:
            write_file(folder / model.name / model.labels(task), _labels(task))


def _labels(task: Task) -> bytes:
    return "".join(f"{name}\n" for name in task.classes).encode()
