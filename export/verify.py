"""Run the parity gate: on a draft before it becomes an artifact, or later on an artifact."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from export.fold import FoldedNetwork, fold
from export.parity import check, measure
from export.photos import photo_at
from ptsa_serve.artifact import Artifact
from ptsa_serve.engines import EngineOptions, load_engine
from ptsa_serve.sizes import Size, Sizes
from ptsa_serve.variants import Branches
from training.network.checkpoint import load_checkpoint
from training.network.model import PTSAModel

__all__ = ["gate", "sizes_to_check", "verify_artifact"]

Report = Callable[[str], None]

# Height to width of photos that graphs of any size are checked on; the last two far from what fixed sizes have.
_RATIOS = ((2, 3), (3, 2), (1, 1), (5, 13), (13, 5))


def gate(
    model: PTSAModel,
    networks: Mapping[Branches, FoldedNetwork],
    artifact: Artifact,
    photos: Sequence[Path],
    report: Report,
) -> dict[str, dict]:
    """The `parity` of a manifest: trained model, plain network and engine on `photos`, for each fp32 graph.

    networks: of each form of the branches that the artifact has. Raises ParityError if any map differs by more than its
    tolerance.
    """
    comparisons = []
    for branches, network in networks.items():
        engine = load_engine("onnxruntime", artifact, EngineOptions(precision="fp32", branches=branches))
        try:
            for size in sizes_to_check(engine.sizes):
                found = measure(model, network, engine.run, [photo_at(path, size) for path in photos])
                for comparison in found:
                    report(str(comparison))
                comparisons += found
        finally:
            engine.close()
    return check(comparisons)


def sizes_to_check(sizes: Sizes) -> list[Size]:
    """The fixed ones; and where a rule allows more, large ones of five shapes, and one smaller than a window."""
    if sizes.rule is None:
        return list(sizes.fixed)
    by_rule = [sizes.rule.choose(*ratio) for ratio in _RATIOS] + [(2 * sizes.rule.multiple, 3 * sizes.rule.multiple)]
    return list(dict.fromkeys([*sizes.fixed, *(size for size in by_rule if size in sizes)]))


def verify_artifact(
    checkpoint: Path, folder: Path, photos: Sequence[Path], report: Report = lambda _: None
) -> dict[str, dict]:
    """Hold the fp32 graphs of an artifact against the checkpoint that it should have been made from; parity by task.

    Raises ParityError, or the errors of reading either.
    """
    artifact = Artifact.open(folder)
    model = load_checkpoint(checkpoint, artifact.manifest.provenance.get("settings"))
    networks: dict[Branches, FoldedNetwork] = {
        form.branches: fold(model, branches=form.branches).network
        for form in artifact.variants.forms
        if form.precision == "fp32"
    }
    return gate(model, networks, artifact, photos, report)
