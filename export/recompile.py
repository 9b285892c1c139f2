"""An artifact's graphs with the passes of today: faster, over the same weights, without its checkpoint."""

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from export.annotate import stored
from export.errors import ExportError, ParityError
from export.outputs import refuse_folder
from export.parity import Comparison, check
from export.passes import StripMetadata, quicken
from export.photos import choose_photos, photo_at
from export.verify import sizes_to_check
from ptsa_serve.artifact import Artifact, ArtifactFile, write_artifact
from ptsa_serve.difference import difference
from ptsa_serve.engines import Engine, EngineOptions, load_engine
from ptsa_serve.predictor import Predictor, tolerance
from ptsa_serve.selection import candidates
from ptsa_serve.variants import Form

__all__ = ["recompile"]

Report = Callable[[str], None]


def recompile(
    folder: Path, out: Path, photos: Sequence[Path], photo_count: int = 4, report: Report = lambda _: None
) -> Artifact:
    """Write the artifact of `folder` to `out`, which may be the same, with quicker graphs; all else stays.

    photos: files or folders, of which `photo_count` are compared at every size in every form that an engine here runs.
    Raises ParityError, with nothing written, if a map is not what it was; ExportError for `out`, or a form that nothing
    here runs; the errors of reading either.
    """
    refuse_folder(out, inputs=photos)
    chosen = choose_photos(photos, photo_count)
    before = Artifact.open(folder)
    files = [quickened(file) if file.role == "graph" else file for file in stored(before)]
    for old, new in zip(before.manifest.files, files, strict=True):
        if new.role == "graph":
            report(f"{new.path}: {old.bytes:,} bytes before, {len(new.data):,} after")
    with tempfile.TemporaryDirectory(prefix="ptsa-export-") as temporary:
        draft = write_artifact(Path(temporary) / "draft", before.manifest, files)
        for form in before.variants.forms:
            name, options = _runner(before, form)
            old, new = load_engine(name, before, options), load_engine(name, draft, options)
            try:
                _same(before, old, new, chosen, report)
                Predictor(draft, new).verify()
            finally:
                old.close()
                new.close()
    return write_artifact(out, before.manifest, files)


def quickened(file: ArtifactFile) -> ArtifactFile:
    """A graph's file after today's passes: the same inputs, outputs and names of weights."""
    model = ir.from_proto(onnx.load_model_from_string(file.data))
    quicken(model)
    StripMetadata()(model)
    return dataclasses.replace(file, data=ir.to_proto(model).SerializeToString())


def _runner(artifact: Artifact, form: Form) -> tuple[str, EngineOptions]:
    """The first engine here that runs `form`. Raises ExportError."""
    for found in candidates(artifact, EngineOptions(precision=form.precision, branches=form.branches)):
        return found
    raise ExportError(f"no engine that is installed here runs {form}, to compare its maps; install one that does")


def _same(artifact: Artifact, old: Engine, new: Engine, photos: Sequence[Path], report: Report) -> None:
    """Compare the maps of each photo at every size. Raises ParityError.

    In one batch with its mirror image, so that a batch axis that is mixed up is seen. What is computed in fp32 must be
    the same to rounding; rounding to fewer bits moves single pixels by a step, so of the others it is the mean, which
    may be what readiness allows.
    """
    found = []
    for size in sizes_to_check(new.sizes):
        images = [photo_at(path, size) for path in photos]
        maps = [(old.run(batch), new.run(batch)) for batch in (np.stack([x, x[:, ::-1]]) for x in images)]
        for name, task in artifact.manifest.task_table().items():
            apart = [difference(task.kind, now[name], was[name]) for was, now in maps]
            if new.precision == "fp32":
                found.append(Comparison(task, ("before", "after"), size, max(one.worst for one in apart)))
                report(str(found[-1]))
            elif not (mean := max(one.mean for one in apart)) <= (allowed := tolerance(task.kind, new.precision)):
                raise ParityError(
                    f"{new.precision} {new.branches} at {size[0]}x{size[1]}: {name} is off by {mean:.3g} in the mean, "
                    f"allowed {allowed:g}; nothing is written"
                )
    if found:
        check(found)
