"""Checkpoint to artifact: fold, emit, compare, write; whole or not at all."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from export.branches import choose, measure
from export.fold import Folded, FoldedNetwork, fold
from export.graphs import SIZES, Graph, build_graph, files_of, shown
from export.manifest import MOST_PIXELS, describe, with_costs
from export.outputs import refuse_folder
from export.photos import choose_photos
from export.sample import sample_maps, sample_photo
from export.verify import gate
from ptsa_serve.artifact import Artifact, ArtifactFile, write_artifact
from ptsa_serve.engines import load_engine
from ptsa_serve.manifest import Manifest
from ptsa_serve.predictor import Predictor
from ptsa_serve.sizes import Size
from ptsa_serve.variants import Branches
from training.network.checkpoint import load_checkpoint
from training.network.model import PTSAModel

__all__ = ["FORMS", "CompileConfig", "compile_artifact"]

Report = Callable[[str], None]
Key = tuple[Branches, Size | None]

# What may be asked for -> the forms of the branches that are made for it; of `auto` one is kept.
FORMS: dict[str, tuple[Branches, ...]] = {
    "folded": ("folded",),
    "low_rank": ("low_rank",),
    "both": ("folded", "low_rank"),
    "auto": ("folded", "low_rank"),
}


@dataclass(frozen=True)
class CompileConfig:
    """What `compile_artifact` needs.

    checkpoint: written by training. out: the artifact's folder. sample: a JPEG that ships in it. photos: files or
    folders for the parity gate, of which `photo_count` are used. sizes: (H, W) of the graphs, None for one of any
    multiples of 32, up to `max_pixels`. branches: see `FORMS`; max_slowdown: with "auto", how many times as long as the
    faster form the smaller one may take to be kept. settings: of the model's method, to be set anew before it is
    folded. name, version, metrics, notes, licence: for the manifest.
    """

    checkpoint: Path
    out: Path
    sample: Path
    photos: Sequence[Path]
    photo_count: int = 4
    sizes: tuple[Size | None, ...] = SIZES
    max_pixels: int = MOST_PIXELS
    branches: Literal["folded", "low_rank", "both", "auto"] = "folded"
    max_slowdown: float = 1.0
    settings: Mapping[str, Any] = field(default_factory=dict)
    name: str = "ptsa-nano"
    version: str = "1"
    metrics: Sequence[dict[str, Any]] = ()
    notes: Sequence[str] = ()
    licence: str = ""


def compile_artifact(config: CompileConfig, report: Report = lambda _: None) -> Artifact:
    """Write the artifact of a checkpoint and return it. Nothing is written unless the parity gate lets it pass.

    Raises ExportError for what it cannot use (ParityError for the gate), CheckpointError for the checkpoint, OSError
    for files that cannot be read or written.
    """
    # First all that can be wrong with the arguments: the graphs take minutes.
    refuse_folder(config.out, inputs=[config.checkpoint, config.sample, *config.photos])
    photos = choose_photos(config.photos, config.photo_count)
    sample = sample_photo(config.sample)
    model = load_checkpoint(config.checkpoint, config.settings)
    manifest = _described(config, model, config.sizes)
    forms: dict[Branches, Folded] = {branches: fold(model, branches=branches) for branches in FORMS[config.branches]}
    made: dict[Key, Graph] = {}
    with tempfile.TemporaryDirectory(prefix="ptsa-export-") as folder:
        draft = _Draft(Path(folder) / "draft", model, sample, photos, report)
        if config.branches == "auto":
            first = config.sizes[:1]
            draft.write(_described(config, model, first), _graphs(forms, first, made, report))
            kept, why = _faster(Artifact.open(draft.folder), config.max_slowdown, report)
            forms = {kept: forms[kept]}
            manifest = manifest.model_copy(update={"provenance": {**manifest.provenance, "branches": why}})
        manifest, files = draft.write(manifest, _graphs(forms, config.sizes, made, report))
    return write_artifact(config.out, manifest, files)


def _described(config: CompileConfig, model: PTSAModel, sizes: Sequence[Size | None]) -> Manifest:
    return describe(
        config.checkpoint,
        model,
        sizes,
        name=config.name,
        version=config.version,
        pixels=config.max_pixels,
        metrics=config.metrics,
        notes=config.notes,
        licence=config.licence,
        settings=config.settings,
    )


def _graphs(
    forms: Mapping[Branches, Folded], sizes: Sequence[Size | None], made: dict[Key, Graph], report: Report
) -> list[Graph]:
    """A graph for each form and size; those in `made` are taken from there, the others put there."""
    for branches, folded in forms.items():
        for size in sizes:
            if (branches, size) not in made:
                report(f"exporting the {branches} graph for {shown(size)}")
                made[branches, size] = build_graph(folded, size)
    return [made[branches, size] for branches in forms for size in sizes]


def _faster(artifact: Artifact, max_slowdown: float, report: Report) -> tuple[Branches, dict[str, Any]]:
    """The form of the branches to keep, and for the manifest why."""
    measured = measure(artifact)
    for branches, one in measured.items():
        report(f"{branches}: {one.milliseconds:.1f} ms a photo on {one.engine}, {one.bytes:,} bytes of weights")
    kept = choose(measured, max_slowdown)
    report(f"keeping {kept}")
    return kept, {"max_slowdown": max_slowdown, "measured": {name: asdict(one) for name, one in measured.items()}}


@dataclass(frozen=True)
class _Draft:
    """An artifact in the making, in a folder of its own."""

    folder: Path
    model: PTSAModel
    sample: ArtifactFile
    photos: Sequence[Path]
    report: Report

    def write(self, manifest: Manifest, graphs: Sequence[Graph]) -> tuple[Manifest, list[ArtifactFile]]:
        """Manifest with costs and parity, and files with the sample's maps, once the graphs have passed the gate."""
        files = [*files_of(graphs), self.sample]
        for file in files:
            self.report(f"{file.path}: {len(file.data):,} bytes")
        manifest = with_costs(manifest, graphs)
        draft = write_artifact(self.folder, manifest, files)
        networks: dict[Branches, FoldedNetwork] = {
            graph.folded.network.branches: graph.folded.network for graph in graphs
        }
        parity = gate(self.model, networks, draft, self.photos, self.report)
        manifest = manifest.model_copy(update={"parity": parity})
        engine = load_engine("onnxruntime", draft)
        try:
            files = [*files, sample_maps(Predictor(draft, engine), files)]
            # What the server will ask of the artifact before it says that it is ready.
            Predictor(write_artifact(self.folder, manifest, files), engine).verify()
        finally:
            engine.close()
        return manifest, files
