"""Checkpoint to artifact: fold, emit, compare, write; whole or not at all."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.graphs import SIZES, Graph, build_graph, files_of
from export.manifest import describe, with_costs
from export.outputs import refuse_folder
from export.photos import choose_photos
from export.sample import sample_maps, sample_photo
from export.verify import gate
from ptsa_serve.artifact import Artifact, ArtifactFile, write_artifact
from ptsa_serve.engines import load_engine
from ptsa_serve.manifest import Manifest
from ptsa_serve.predictor import Predictor
from training.network.checkpoint import load_checkpoint
from training.network.model import PTSAModel

__all__ = ["CompileConfig", "compile_artifact"]

Report = Callable[[str], None]


@dataclass(frozen=True)
class CompileConfig:
    """What `compile_artifact` needs.

    checkpoint: written by training. out: the artifact's folder. sample: a JPEG that ships in it. photos: files or
    folders for the parity gate, of which `photo_count` are used. sizes: (H, W) of the graphs. name, version, metrics,
    licence: for the manifest.
    """

    checkpoint: Path
    out: Path
    sample: Path
    photos: Sequence[Path]
    photo_count: int = 4
    sizes: tuple[tuple[int, int], ...] = SIZES
    name: str = "ptsa-nano"
    version: str = "1"
    metrics: Sequence[dict[str, Any]] = ()
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
    model = load_checkpoint(config.checkpoint)
    manifest = describe(
        config.checkpoint,
        model,
        config.sizes,
        name=config.name,
        version=config.version,
        metrics=config.metrics,
        licence=config.licence,
    )
    graphs = []
    for size in config.sizes:
        report(f"exporting the graph for {size[0]} x {size[1]}")
        graphs.append(build_graph(model, size))
    files = [*files_of(graphs), sample]
    for file in files:
        report(f"{file.path}: {len(file.data):,} bytes")
    manifest, files = _proven(model, graphs, with_costs(manifest, graphs), files, photos, report)
    return write_artifact(config.out, manifest, files)


def _proven(
    model: PTSAModel,
    graphs: Sequence[Graph],
    manifest: Manifest,
    files: list[ArtifactFile],
    photos: Sequence[Path],
    report: Report,
) -> tuple[Manifest, list[ArtifactFile]]:
    """Manifest with its parity and files with the sample's maps, after a draft of them has passed the gate."""
    with tempfile.TemporaryDirectory(prefix="ptsa-export-") as folder:
        draft = write_artifact(Path(folder) / "draft", manifest, files)
        engine = load_engine("onnxruntime", draft)
        try:
            networks = (graph.folded.network for graph in graphs)
            manifest = manifest.model_copy(update={"parity": gate(model, networks, engine, photos, report)})
            files = [*files, sample_maps(Predictor(draft, engine), files)]
            # What the server will ask of the artifact before it says that it is ready.
            Predictor(write_artifact(draft.folder, manifest, files), engine).verify()
        finally:
            engine.close()
    return manifest, files
