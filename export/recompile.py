"""An artifact's graphs with the passes of today: faster, over the same weights, without its checkpoint."""

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from export.annotate import stored
from export.outputs import refuse_folder
from export.parity import Comparison, check
from export.passes import StripMetadata, quicken
from export.photos import choose_photos, photo_at
from ptsa_serve.artifact import Artifact, ArtifactFile, write_artifact
from ptsa_serve.difference import difference
from ptsa_serve.engines import Engine, load_engine
from ptsa_serve.predictor import Predictor

__all__ = ["recompile"]

Report = Callable[[str], None]


def recompile(
    folder: Path, out: Path, photos: Sequence[Path], photo_count: int = 4, report: Report = lambda _: None
) -> Artifact:
    """Write the artifact of `folder` to `out`, which may be the same, with quicker graphs; all else stays.

    photos: files or folders, of which `photo_count` are compared at every size. Raises ParityError, with nothing
    written, if a map is not what it was; ExportError for `out`; the errors of reading either.
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
        old, new = load_engine("onnxruntime", before), load_engine("onnxruntime", draft)
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


def _same(artifact: Artifact, old: Engine, new: Engine, photos: Sequence[Path], report: Report) -> None:
    """Compare the maps of each photo at every fixed size. Raises ParityError.

    In one batch with its mirror image, so that a batch axis that is mixed up is seen.
    """
    found = []
    for size in new.sizes:
        images = [photo_at(path, size) for path in photos]
        maps = [(old.run(batch), new.run(batch)) for batch in (np.stack([x, x[:, ::-1]]) for x in images)]
        for name, task in artifact.manifest.task_table().items():
            worst = max(difference(task.kind, now[name], was[name]).worst for was, now in maps)
            found.append(Comparison(task, ("before", "after"), size, worst))
            report(str(found[-1]))
    check(found)
