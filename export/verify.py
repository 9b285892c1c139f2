"""Run the parity gate: on the graphs of a draft before it becomes an artifact, or later on an artifact."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from export.fold import FoldedNetwork, fold
from export.parity import check, measure
from export.photos import photo_at
from ptsa_serve.artifact import Artifact
from ptsa_serve.engines import Engine, load_engine
from training.network.checkpoint import load_checkpoint
from training.network.model import PTSAModel

__all__ = ["gate", "verify_artifact"]

Report = Callable[[str], None]


def gate(
    model: PTSAModel, networks: Iterable[FoldedNetwork], engine: Engine, photos: Sequence[Path], report: Report
) -> dict[str, dict]:
    """The `parity` of a manifest, from all three forms of a model on `photos` at the size of each network.

    Raises ParityError if any map differs by more than its tolerance.
    """
    comparisons = []
    for network in networks:
        found = measure(model, network, engine.run, [photo_at(path, network.size) for path in photos])
        for comparison in found:
            report(str(comparison))
        comparisons += found
    return check(comparisons)


def verify_artifact(
    checkpoint: Path, folder: Path, photos: Sequence[Path], report: Report = lambda _: None
) -> dict[str, dict]:
    """Hold an artifact against the checkpoint that it should have been made from; its parity by task.

    Raises ParityError, or the errors of reading either.
    """
    model = load_checkpoint(checkpoint)
    engine = load_engine("onnxruntime", Artifact.open(folder))
    try:
        return gate(model, (fold(model, size).network for size in engine.sizes), engine, photos, report)
    finally:
        engine.close()
