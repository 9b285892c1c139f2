"""Figures measured on an artifact, written into its manifest afterwards: the graphs are not made again."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from export.errors import ExportError
from ptsa_serve.artifact import Artifact, ArtifactFile, write_artifact

__all__ = ["annotate", "entry", "stored"]

_RECORDED = {"path", "role", "bytes", "sha256"}


def entry(measurement: Mapping[str, Any]) -> dict[str, Any]:
    """A measurement of `python -m benchmarks accuracy` as a manifest's entry, without figures that are null.

    Raises ExportError for another file, or a figure that is no number.
    """
    try:
        conditions, figures = measurement["conditions"], measurement["figures"]
        wrong = [name for name, value in figures.items() if value is not None and not math.isfinite(value)]
        if wrong:
            raise ExportError(f"figures that are no numbers: {', '.join(wrong)}; measure them again")
        return {
            "data": conditions["data"],
            "split": conditions["split"],
            "photos": conditions["photos"],
            "protocol": "maps as served, compared at the labels' own size",
            "figures": {name: round(value, 4) for name, value in figures.items() if value is not None},
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise ExportError(
            f"no measurement of accuracy ({error}); `python -m benchmarks accuracy --out` writes one"
        ) from None


def annotate(folder: Path, metrics: Sequence[Mapping[str, Any]]) -> Artifact:
    """Replace the figures in the manifest of the artifact in `folder`; its other files stay byte for byte."""
    artifact = Artifact.open(folder)
    manifest = artifact.manifest.model_copy(update={"metrics": tuple(dict(entry) for entry in metrics)})
    return write_artifact(folder, manifest, stored(artifact))


def stored(artifact: Artifact) -> list[ArtifactFile]:
    """The files of an artifact, as they would be written again."""
    files = []
    for record in artifact.manifest.files:
        attributes = record.model_dump(exclude_none=True, exclude=_RECORDED)
        files.append(ArtifactFile(record.path, record.role, (artifact.folder / record.path).read_bytes(), attributes))
    return files
