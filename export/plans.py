"""Plans for an artifact: which are wanted, which are there, and their place in its manifest."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from export.errors import ExportError
from export.outputs import refuse_unwritable
from export.tensorrt import BuildOptions, build
from ptsa_serve.artifact import Artifact
from ptsa_serve.cache import cache_folder
from ptsa_serve.engines import tensorrt, tensorrt_rtx
from ptsa_serve.engines.cuda import Cuda
from ptsa_serve.engines.flavour import Flavour, Imported
from ptsa_serve.files import replace_file
from ptsa_serve.manifest import FileRecord
from ptsa_serve.plans import PlanRecord, plan_path
from ptsa_serve.sizes import Size
from ptsa_serve.variants import Branches, Form, Precision, Variant

__all__ = ["FLAVOURS", "PlansConfig", "build_plans"]

Report = Callable[[str], None]

FLAVOURS: dict[str, Flavour] = {flavour.name: flavour for flavour in (tensorrt.FLAVOUR, tensorrt_rtx.FLAVOUR)}


@dataclass(frozen=True)
class PlansConfig:
    """What `build_plans` needs.

    artifact: its folder. runtime: key of `FLAVOURS`. sizes: (H, W) each, none: the artifact's fixed ones. batches:
    photos of a run, a profile each. precision, branches: None as in `EngineOptions`. tasks: outputs, none: all.
    device: number of the GPU to build on.
    """

    artifact: Path
    runtime: str
    sizes: tuple[Size, ...] = ()
    batches: tuple[int, ...] = (1, 4, 8)
    precision: Precision | None = None
    branches: Branches | None = None
    tasks: tuple[str, ...] = ()
    device: int = 0
    options: BuildOptions = field(default_factory=BuildOptions)


def build_plans(config: PlansConfig, report: Report = lambda _: None) -> list[FileRecord]:
    """Build what is not there yet and write it into the artifact, each plan as soon as it is done. All, as recorded.

    Raises ExportError for what cannot be built, EngineError where the runtime or its GPU is missing.
    """
    artifact = Artifact.open(config.artifact)
    form = artifact.variants.form(config.precision, config.branches)
    wanted = _wanted(artifact, form, config)
    runtime = FLAVOURS[config.runtime].load()
    gpu = None if runtime.flavour.portable else _gpu(config.device)
    refuse_unwritable(artifact.folder / "plans")
    records = []
    for variant, sizes in wanted.items():
        shapes = tuple((batch, *size) for size in sizes for batch in sorted(config.batches))
        record = _record(artifact, variant, runtime, gpu, shapes, config.options)
        tasks = tuple(task for task in variant.tasks if not config.tasks or task in config.tasks)
        path = plan_path(record, tasks)
        found = next((file for file in artifact.manifest.files if file.path == path), None)
        if found:
            report(f"{path} is there already")
        else:
            data = _built(artifact, variant, tasks, runtime, record, config.options, report)
            found = FileRecord(
                path=path,
                role="plan",
                bytes=len(data),
                sha256=hashlib.sha256(data).hexdigest(),
                precision=form.precision,
                branches=form.branches,
                tasks=tasks,
                plan=record,
            )
            artifact = _add(artifact, found, data)
            report(f"wrote {artifact.folder / path}: {len(data):,} bytes")
        records.append(found)
    return records


def _wanted(artifact: Artifact, form: Form, config: PlansConfig) -> dict[Variant, list[Size]]:
    """The graphs to build from, and for which sizes."""
    known = artifact.manifest.task_table()
    if unknown := [task for task in config.tasks if task not in known]:
        raise ExportError(f"there is no task {unknown[0]!r}; use some of: {', '.join(known)}")
    sizes = config.sizes or artifact.variants.sizes(form).fixed
    if not sizes:
        raise ExportError(f"the {form} graphs of {artifact.folder} take any size; name those to build for with --size")
    wanted: dict[Variant, list[Size]] = {}
    for size in sizes:
        wanted.setdefault(artifact.variants.choose(form, size, config.tasks or tuple(known)), []).append(size)
    return wanted


def _gpu(device: int) -> tuple[str, str]:
    cuda = Cuda(device)
    cuda.close()
    return cuda.name, cuda.compute_capability


def _record(
    artifact: Artifact,
    variant: Variant,
    runtime: Imported,
    gpu: tuple[str, str] | None,
    shapes: tuple[tuple[int, int, int], ...],
    options: BuildOptions,
) -> PlanRecord:
    digests = {file.path: file.sha256 for file in artifact.manifest.files}
    return PlanRecord(
        runtime=runtime.flavour.name,
        runtime_version=runtime.version,
        gpu=gpu[0] if gpu else None,
        compute_capability=gpu[1] if gpu else None,
        graph=variant.path,
        graph_sha256=digests[variant.path],
        weights_sha256=digests[variant.weights],
        shapes=shapes,
        options=asdict(options),
    )


def _built(
    artifact: Artifact,
    variant: Variant,
    tasks: Sequence[str],
    runtime: Imported,
    record: PlanRecord,
    options: BuildOptions,
    report: Report,
) -> bytes:
    graph = artifact.graph(variant, tasks)
    timings = None
    if not runtime.flavour.portable:
        # What was measured on one GPU is of no use to another; a portable plan is measured nowhere.
        kind = f"{runtime.flavour.name}-{runtime.version}-{record.gpu}-{record.compute_capability}"
        timings = cache_folder() / f"{kind.replace(' ', '_').replace('/', '_')}.timings"
    return build(
        runtime,
        graph,
        artifact.weights(variant).make(graph.weights),
        record.shapes,
        options,
        name=variant.path,
        input_name=artifact.manifest.input.name,
        timing_cache=timings,
        report=report,
    )


def _add(artifact: Artifact, added: FileRecord, data: bytes) -> Artifact:
    """The artifact with a plan more. One that it stands in for (same runtime, GPU, graph and tasks) goes."""
    replaced = [file for file in artifact.manifest.files if file.plan and _stands_in(added, file)]
    kept = tuple(file for file in artifact.manifest.files if file not in replaced)
    manifest = artifact.manifest.model_copy(update={"files": (*kept, added)})
    # The plan before the manifest that names it, and what is no longer named last: at no time is a file missing.
    replace_file(artifact.folder / added.path, data)
    replace_file(artifact.folder / "manifest.json", manifest.to_json().encode())
    for file in replaced:
        (artifact.folder / file.path).unlink(missing_ok=True)
    return Artifact(artifact.folder, manifest)


def _stands_in(new: FileRecord, old: FileRecord) -> bool:
    assert new.plan
    assert old.plan
    same = ("runtime", "gpu", "compute_capability", "graph")
    return new.tasks == old.tasks and all(getattr(new.plan, name) == getattr(old.plan, name) for name in same)
