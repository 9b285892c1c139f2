"""What an artifact says about itself: tasks, tree, costs, origin."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

import ptsa_serve
from export import counts
from export.errors import ExportError
from export.graphs import Graph
from ptsa_serve.manifest import Backbone, Counts, InputSpec, Manifest, TaskRecord, Tree
from training.network.checkpoint import read_info, sha256
from training.network.model import PTSAModel

__all__ = ["backbone_digest", "describe", "with_costs"]


def describe(
    checkpoint: Path,
    model: PTSAModel,
    sizes: Sequence[tuple[int, int]],
    *,
    name: str,
    version: str,
    metrics: Sequence[Mapping[str, Any]] = (),
    licence: str = "",
) -> Manifest:
    """The manifest of a model, without files, parity and what only the graphs tell.

    Raises ExportError for a name, version, size, figure or licence that no manifest may hold.
    """
    info = read_info(checkpoint)
    with _plainly():
        manifest = Manifest(
            name=name,
            version=version,
            input=InputSpec(sizes=tuple(sizes)),
            tasks=tuple(TaskRecord.of(task) for task in model.tasks.values()),
            tree=Tree.of(model.config.tree),
            backbone=Backbone(name=model.config.backbone, sha256=backbone_digest(model)),
            counts=Counts(
                frozen=counts.frozen(model),
                trainable=counts.trainable(model),
                deployed=0,
                multiply_adds={},
            ),
            metrics=tuple(dict(entry) for entry in metrics),
            provenance={
                "code": f"ptsa-serve {ptsa_serve.__version__}",
                "exporter": f"torch {torch.__version__}",
                "checkpoint_sha256": sha256(checkpoint),
                "training": info,
                "data": info.get("data", {}),
                "licence": licence,
            },
        )
        # As it will be written, to the last byte.
        return Manifest.from_json(manifest.to_json().encode())


@contextmanager
def _plainly() -> Iterator[None]:
    """Raise ExportError, in one line, for what a manifest refuses to hold."""
    try:
        yield
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, f['loc']))} is {f['input']!r}: {f['msg']}" for f in error.errors())
        raise ExportError(f"the manifest cannot hold this: {faults}") from None
    except UnicodeEncodeError as error:
        found = error.object[max(0, error.start - 20) : error.end]
        raise ExportError(f"the manifest cannot hold {found!r}: it is no text; write --licence in UTF-8") from None


def with_costs(manifest: Manifest, graphs: Sequence[Graph]) -> Manifest:
    """The manifest with the parameters and multiply-adds of what is deployed."""
    multiply_adds = {f"{graph.size[0]}x{graph.size[1]}": graph.multiply_adds for graph in graphs}
    deployed = counts.deployed(graphs[0].folded.network)
    costs = manifest.counts.model_copy(update={"deployed": deployed, "multiply_adds": multiply_adds})
    return manifest.model_copy(update={"counts": costs})


def backbone_digest(model: PTSAModel) -> str:
    """sha256 of the frozen backbone: of each tensor's name and float32 bytes, in alphabetical order.

    Two adaptations of one backbone have the same, whatever adapters they added.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(model.backbone.trunk.named_parameters()):
        digest.update(name.encode())
        digest.update(parameter.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
