"""Add graphs of lower precision to an artifact, each if it passes the gate; all of them or none."""

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.accuracy import chosen, served_figures
from export.errors import AccuracyError, ExportError
from export.outputs import refuse_folder
from export.photos import choose_photos
from export.precision.files import fp32_graphs, half_files, merged
from export.precision.gate import Loss, check, losses
from export.precision.quantize import attempts, int8_artifact, sources, worst_layers
from ptsa_serve.artifact import Artifact, ArtifactFile, write_artifact
from ptsa_serve.difference import difference
from ptsa_serve.engines import EngineOptions, load_engine
from ptsa_serve.errors import PTSAError
from ptsa_serve.images import ImageLimits, decode
from ptsa_serve.predictor import Predictor, tolerance
from ptsa_serve.resize import shrink
from ptsa_serve.selection import candidates
from ptsa_serve.variants import Branches, Form, Precision
from training.data.opening import open_set
from training.data.photoset import PhotoSet
from training.scoring.metrics import Figures

__all__ = ["LowerConfig", "lower_artifact"]

Report = Callable[[str], None]


@dataclass(frozen=True)
class LowerConfig:
    """What `lower_artifact` needs.

    artifact: a folder with fp32 graphs. out: the new folder. precisions: to be added. data: folder of each labelled
    data set, for the gate; of its `split` about `photo_count` photos are measured, 0 = all. photos: files or folders
    that int8 is calibrated on, of which `calibration_count` are used; better none of those that are measured.
    """

    artifact: Path
    out: Path
    precisions: Sequence[Precision]
    data: Mapping[str, Path]
    split: str = "val"
    photo_count: int = 100
    photos: Sequence[Path] = ()
    calibration_count: int = 16


@dataclass(frozen=True)
class _Gate:
    """Labelled photos and what fp32 makes of them, for each form of branches."""

    sets: Mapping[str, PhotoSet]
    count: int
    before: Mapping[Branches, Mapping[str, Mapping[str, Figures]]]

    def losses(self, predictor: Predictor, branches: Branches) -> list[Loss]:
        return losses(self.before[branches], _figures(predictor, self.sets, self.count))


def lower_artifact(config: LowerConfig, report: Report = lambda _: None) -> Artifact:
    """Write `config.out` and return it: the artifact and what it was asked to have more.

    Raises AccuracyError if a precision loses too much, ExportError for what cannot be used, the errors of data sets and
    of artifacts, OSError. Then nothing is written.
    """
    refuse_folder(config.out, inputs=[config.artifact, *config.data.values(), *config.photos])
    artifact = Artifact.open(config.artifact)
    _refuse(config, artifact)
    photos = choose_photos(config.photos, config.calibration_count) if "int8" in config.precisions else []
    sets = {name: open_set(name, root, config.split) for name, root in config.data.items()}
    with tempfile.TemporaryDirectory(prefix="ptsa-lower-") as name:
        folder = Path(name)
        gate = _gate(artifact, sets, config.photo_count, report)
        for precision in config.precisions:
            report(f"making {precision} graphs")
            if precision == "int8":
                artifact = _with_int8(artifact, photos, gate, folder, report)
            else:
                artifact = _passed(artifact, half_files(artifact, precision), precision, gate, folder, report)
        return write_artifact(config.out, artifact.manifest, merged(artifact, ()))


def _refuse(config: LowerConfig, artifact: Artifact) -> None:
    there = {form.precision for form in artifact.variants.forms}
    if not fp32_graphs(artifact):
        raise ExportError(f"{artifact.folder} has no fp32 graph to make others from; name one that has")
    for precision in config.precisions:
        if precision in there or config.precisions.count(precision) > 1:
            raise ExportError(f"{artifact.folder} has {', '.join(sorted(there))} graphs; ask once for what it lacks")
    if not config.data:
        raise ExportError(
            "no labelled photos: a lower precision is measured before it is written; give --data NAME=DIR"
        )
    if "int8" in config.precisions and not config.photos:
        raise ExportError("int8 is calibrated on photos; give --photos, a folder of some that are not measured")


def _gate(artifact: Artifact, sets: Mapping[str, PhotoSet], count: int, report: Report) -> _Gate:
    before = {}
    for form in _forms(artifact, "fp32"):
        report(f"measuring {form}")
        predictor = _predictor(artifact, form)
        before[form.branches] = _figures(predictor, sets, count)
        predictor.engine.close()
    return _Gate(sets, count, before)


def _figures(predictor: Predictor, sets: Mapping[str, PhotoSet], count: int) -> dict[str, dict[str, Figures]]:
    return {name: served_figures(predictor, data, count) for name, data in sets.items()}


def _with_int8(artifact: Artifact, photos: Sequence[Path], gate: _Gate, folder: Path, report: Report) -> Artifact:
    """With int8 graphs in which as few layers are left out as the gate allows."""
    found = sources(artifact, photos, folder / "sources")
    tasks = artifact.manifest.task_table()
    every = list(dict.fromkeys(layer for source in found for layer in source.layers))
    worst: list[str] = []
    error: ExportError = AccuracyError("int8: the graphs have no layer that can be quantized")
    for count in attempts(len(every)) if every else ():
        if count and not worst:
            report(f"measuring each of {len(every)} layers alone in int8")
            worst = worst_layers(found[0], tasks)
        left_out = worst[:count]
        try:
            made = _passed(artifact, int8_artifact(found, left_out, artifact), "int8", gate, folder, report)
        except AccuracyError as failed:
            report(f"int8 without {', '.join(left_out) or 'exception'}: {failed}")
            error = failed
        else:
            return _noted(made, "int8", {"left_out": left_out, "calibration_photos": len(photos)})
    raise error


def _passed(
    artifact: Artifact,
    files: Sequence[ArtifactFile],
    precision: Precision,
    gate: _Gate,
    folder: Path,
    report: Report,
) -> Artifact:
    """A draft with `files`, which passed the gate. Raises AccuracyError."""
    draft = write_artifact(folder / precision, artifact.manifest, merged(artifact, files))
    found: dict[str, list[Loss]] = {}
    for form in _forms(draft, precision):
        predictor = _predictor(draft, form)
        try:
            _near_fp32(draft, predictor, form)
            found[form.branches] = gate.losses(predictor, form.branches)
        finally:
            predictor.engine.close()
        for loss in found[form.branches]:
            report(f"{form}: {loss}")
        check(precision, found[form.branches])
    said = {branches: [_entry(loss) for loss in entries] for branches, entries in found.items()}
    photos = {name: len(chosen(data, gate.count)) for name, data in gate.sets.items()}
    return _noted(draft, precision, {"photos": photos, "losses": said})


def _near_fp32(draft: Artifact, predictor: Predictor, form: Form) -> None:
    """Raise AccuracyError if the sample's maps at any size lie further from those of fp32 than readiness allows."""
    photo = draft.sample()[0]
    fp32 = _predictor(draft, Form("fp32", form.branches))
    try:
        for size in predictor.engine.sizes:
            batch = shrink(decode(photo, ImageLimits(), at_least=size).pixels, size)[None]
            maps, expected = predictor.engine.run(batch), fp32.engine.run(batch)
            for name, task in predictor.tasks.items():
                apart = difference(task.kind, maps[name], expected[name]).mean
                if not apart <= (allowed := tolerance(task.kind, form.precision)):
                    raise AccuracyError(
                        f"{form} at {size[0]}x{size[1]}: {name} of the sample is off by {apart:.3g}, "
                        f"allowed {allowed:g}"
                    )
    finally:
        fp32.engine.close()


def _predictor(artifact: Artifact, form: Form) -> Predictor:
    """On the first engine here that runs `form` and reproduces the sample. Raises AccuracyError if none does."""
    reasons = []
    for name, options in candidates(artifact, EngineOptions(precision=form.precision, branches=form.branches)):
        try:
            predictor = Predictor(artifact, load_engine(name, artifact, options))
            predictor.verify()
        except PTSAError as error:
            reasons.append(f"{name}: {error}")
        else:
            return predictor
    raise AccuracyError(f"no engine that is installed here runs {form}: {'; '.join(reasons) or 'install one'}")


def _forms(artifact: Artifact, precision: Precision) -> Iterable[Form]:
    return [form for form in artifact.variants.forms if form.precision == precision]


def _noted(artifact: Artifact, precision: Precision, facts: Mapping[str, Any]) -> Artifact:
    """The artifact whose provenance says `facts` of a precision."""
    manifest = artifact.manifest
    said = {**manifest.provenance.get("precisions", {})}
    said[precision] = {**said.get(precision, {}), **facts}
    provenance = {**manifest.provenance, "precisions": said}
    return Artifact(artifact.folder, manifest.model_copy(update={"provenance": provenance}))


def _entry(loss: Loss) -> dict[str, Any]:
    return {
        "data": loss.data,
        "task": loss.task,
        "figure": loss.figure,
        "fp32": loss.before,
        "lowered": loss.after,
        "lost": round(loss.share, 6),
    }
