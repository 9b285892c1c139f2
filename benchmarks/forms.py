"""What does each form of a model cost and lose? Branches, precisions, shapes: exported, gated, run by every engine.

A row is one form: folded or low-rank branches, in one precision, in a graph of a fixed size or of any size. Each is
made from the checkpoint by the commands that a user has, through their gates; then every engine here that offers it
must reproduce the model's sample, and all are timed in turn on the same photo. TensorRT for RTX builds a plan of each,
for which it needs no GPU.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.measurement import Measurement, alternate
from export.compile import CompileConfig, compile_artifact
from export.errors import AccuracyError, ExportError
from export.lower import LowerConfig, lower_artifact
from export.plans import PlansConfig, build_plans
from ptsa_serve.artifact import Artifact
from ptsa_serve.engines import ENGINES, EngineOptions, load_engine
from ptsa_serve.errors import PTSAError
from ptsa_serve.files import replace_file
from ptsa_serve.predictor import Predictor
from ptsa_serve.selection import candidates
from ptsa_serve.sizes import Size
from ptsa_serve.variants import Form, Precision

__all__ = ["FormsConfig", "forms_table", "measure_forms"]

Report = Callable[[str], None]
Rows = dict[str, dict[str, Any]]

_LOWERED: tuple[Precision, ...] = ("fp16", "bf16", "int8")
_PLANS = "tensorrt_rtx"


@dataclass(frozen=True)
class FormsConfig:
    """What `measure_forms` needs.

    checkpoint: of the model. data: folder of each labelled set, for the gate; photo_count of each are measured, 0 =
    all. photos: for parity and calibration. sample: a JPEG of about the shape of `size` (H, W). work: folder for the
    artifacts; those that are there are not made again.
    """

    checkpoint: Path
    sample: Path
    data: Mapping[str, Path]
    photos: Sequence[Path]
    work: Path
    size: Size
    photo_count: int
    threads: int
    rounds: int


def measure_forms(config: FormsConfig, report: Report = lambda _: None) -> Measurement:
    """Raises ExportError and its kin for what cannot be made; an engine that refuses a form is a cell that says why."""
    rows: Rows = {}
    artifacts = {shape: _made(config, shape, report) for shape in ("fixed", "dynamic")}
    for shape, artifact in artifacts.items():
        rows |= {_label(form, shape): _facts(artifact, form, config.size) for form in artifact.variants.forms}
    _time_engines(config, artifacts, rows, report)
    for shape, artifact in artifacts.items():
        for form in artifact.variants.forms:
            rows[_label(form, shape)][_PLANS] = _plan(config, artifact, form, shape, report)
    model = artifacts["fixed"].manifest
    conditions: dict[str, str | int | float] = {
        "model": f"{model.name} on {model.backbone.name}",
        "size": f"{config.size[1]}x{config.size[0]}",
        "threads": config.threads,
        "rounds": config.rounds,
        "photos_of_a_gate": config.photo_count,
        **{name: ENGINES[name].version() for name in ENGINES if ENGINES[name].version()},
    }
    return Measurement("What does each form of a model cost and lose?", rows, conditions)


def forms_table(measurement: Measurement) -> str:
    """A Markdown table: milliseconds of each engine, what the form loses by its gate, and the plan."""
    rows = measurement.figures
    engines = [name for name in ENGINES if any(name in row for row in rows.values()) and name != _PLANS]
    head = ["form", *(f"{name}, ms" for name in engines), "most lost", "plan (TensorRT for RTX)"]
    lines = [" | ".join(head), " | ".join(["---"] * len(head))]
    for name, row in rows.items():
        cells = [_cell(row.get(engine)) for engine in engines]
        lost = "–" if row["lost"] is None else f"{100 * row['lost']:.2f} %"
        plan = row[_PLANS] if isinstance(row[_PLANS], str) else f"{row[_PLANS]['mb']:.0f} MB"
        lines.append(" | ".join([name, *cells, lost, plan]))
    return "\n".join(f"| {line} |" for line in lines)


def _cell(found: float | str | None) -> str:
    return found or "not offered" if isinstance(found, str | None) else f"{found:.0f}"


def _label(form: Form, shape: str) -> str:
    return f"{form.branches} {form.precision} {shape}"


def _made(config: FormsConfig, shape: str, report: Report) -> Artifact:
    """The artifact with every form at one shape, a step a folder."""
    out = config.work / shape / "fp32"
    if not out.exists():
        sizes = (config.size,) if shape == "fixed" else (None,)
        report(f"exporting the {shape} graphs")
        asked = CompileConfig(config.checkpoint, out, config.sample, config.photos, sizes=sizes, branches="both")
        # So that photos of one shape run at one size in all of them.
        compile_artifact(replace(asked, max_pixels=config.size[0] * config.size[1]), report)
    for precision in _LOWERED:
        into = config.work / shape / precision
        if not into.exists():
            asked = LowerConfig(out, into, [precision], config.data, photo_count=config.photo_count)
            try:
                lower_artifact(replace(asked, photos=config.photos), report)
            except AccuracyError as error:
                report(f"no {precision} {shape}: {error}")
                continue
        out = into
    return Artifact.open(out)


def _facts(artifact: Artifact, form: Form, size: Size) -> dict[str, Any]:
    """bytes: of the large weights in memory, in fp32. lost: the worst of any task's own metric by the gate."""
    said = artifact.manifest.provenance.get("precisions", {}).get(form.precision, {}).get("losses", {})
    costs = artifact.manifest.counts.forms.get(form.branches)
    return {
        "weights_bytes": costs.bytes if costs else None,
        "graph_bytes": (artifact.folder / artifact.variants.choose(form, size, ()).path).stat().st_size,
        "lost": max((entry["lost"] for entry in said.get(form.branches, ())), default=None),
    }


def _time_engines(config: FormsConfig, artifacts: Mapping[str, Artifact], rows: Rows, report: Report) -> None:
    """Put the milliseconds of a photo alone on each engine into the rows, or why there are none."""
    started: dict[tuple[str, str], Predictor] = {}
    for row, name, options, artifact in _offers(config, artifacts):
        report(f"checking {name} with {row}")
        try:
            predictor = Predictor(artifact, load_engine(name, artifact, options))
            predictor.verify()
        except PTSAError as error:
            rows[row][name] = f"refused: {error}"
        else:
            started[row, name] = predictor
    report(f"timing {len(started)} in turn")
    runs = {}
    for (row, name), predictor in started.items():
        photo = predictor.prepare(predictor.artifact.sample()[0])
        if photo.size != config.size:
            raise ExportError(f"{config.sample} runs at {photo.size}, not at {config.size}; give one of that shape")
        runs[f"{row}|{name}"] = partial(predictor.engine.run, photo.pixels[None])
    for key, milliseconds in alternate(runs, config.rounds).items():
        row, _, name = key.partition("|")
        rows[row][name] = milliseconds
    for predictor in started.values():
        predictor.engine.close()


def _offers(
    config: FormsConfig, artifacts: Mapping[str, Artifact]
) -> Iterator[tuple[str, str, EngineOptions, Artifact]]:
    for shape, artifact in artifacts.items():
        for name, options in candidates(artifact, EngineOptions(config.threads)):
            if options.precision and options.branches:
                form = Form(options.precision, options.branches)
                if form in artifact.variants.forms:
                    yield _label(form, shape), name, options, artifact


def _plan(config: FormsConfig, artifact: Artifact, form: Form, shape: str, report: Report) -> dict[str, float] | str:
    """Seconds and megabytes of a plan; or why there is none. A plan that was built is not kept, only this."""
    known = config.work / "plans" / f"{_label(form, shape).replace(' ', '-')}.json"
    if not known.exists():
        found = _built(config, artifact, form, report)
        if isinstance(found, str):
            return found
        known.parent.mkdir(parents=True, exist_ok=True)
        replace_file(known, json.dumps(found).encode())
    return json.loads(known.read_bytes())


def _built(config: FormsConfig, artifact: Artifact, form: Form, report: Report) -> dict[str, float] | str:
    folder = config.work / "plan"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(artifact.folder, folder)
    asked = PlansConfig(folder, _PLANS, (config.size,), (1,), precision=form.precision, branches=form.branches)
    start = time.perf_counter()
    try:
        build_plans(asked, report)
    except (ExportError, PTSAError) as error:
        return f"refused: {error}"
    seconds = time.perf_counter() - start
    plans = [file.bytes for file in Artifact.open(folder).manifest.files if file.plan]
    shutil.rmtree(folder)
    return {"seconds": seconds, "mb": sum(plans) / 1e6}
