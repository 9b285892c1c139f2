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
from export.graphs import Graph, shown
from export.weights import weight_bytes
from ptsa_serve.manifest import AnySizeRecord, Backbone, Counts, FormCounts, InputSpec, Manifest, TaskRecord, Tree
from ptsa_serve.sizes import Size
from ptsa_serve.variants import Branches
from training.network.checkpoint import read_info, sha256
from training.network.model import STRIDE, PTSAModel

__all__ = ["MOST_PIXELS", "backbone_digest", "describe", "with_costs"]

# Of a photo at a size that has no graph of its own: as many as a square of 448, what models are trained at.
MOST_PIXELS = 448 * 448
# The size at which multiply-adds of a graph of any size are counted.
ANY_COUNTED = (448, 448)


def describe(
    checkpoint: Path,
    model: PTSAModel,
    sizes: Sequence[Size | None],
    *,
    name: str,
    version: str,
    pixels: int = MOST_PIXELS,
    metrics: Sequence[Mapping[str, Any]] = (),
    notes: Sequence[str] = (),
    licence: str = "",
    settings: Mapping[str, Any] | None = None,
) -> Manifest:
    """The manifest of a model, without files, parity and what only the graphs tell.

    sizes: (H, W) of its graphs, None for those of any size, which take photos of up to `pixels`. settings: of its
    method, that were set anew.
    Raises ExportError for a name, version, size, figure, note or licence that no manifest may hold.
    """
    info = read_info(checkpoint)
    with _plainly():
        manifest = Manifest(
            name=name,
            version=version,
            input=InputSpec(sizes=tuple(size for size in sizes if size), any_size=_rule(pixels, sizes)),
            tasks=tuple(TaskRecord.of(task) for task in model.tasks.values()),
            tree=Tree.of(model.config.tree),
            backbone=Backbone(name=model.config.backbone, sha256=backbone_digest(model)),
            counts=Counts(frozen=counts.frozen(model), trainable=counts.trainable(model), deployed=0, multiply_adds={}),
            metrics=tuple(dict(entry) for entry in metrics),
            notes=tuple(notes),
            provenance={
                "code": f"ptsa-serve {ptsa_serve.__version__}",
                "exporter": f"torch {torch.__version__}",
                "checkpoint_sha256": sha256(checkpoint),
                "training": info,
                "data": info.get("data", {}),
                "licence": licence,
                **({"settings": dict(settings)} if settings else {}),
            },
        )
        # As it will be written, to the last byte.
        return Manifest.from_json(manifest.to_json().encode())


def _rule(pixels: int, sizes: Sequence[Size | None]) -> AnySizeRecord | None:
    return AnySizeRecord(multiple=STRIDE, pixels=pixels) if None in sizes else None


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
        raise ExportError(
            f"the manifest cannot hold {found!r}: it is no text; write --note and --licence in UTF-8"
        ) from None


def with_costs(manifest: Manifest, graphs: Sequence[Graph]) -> Manifest:
    """The manifest with what each form of its graphs costs; the first form's figures stand for the model."""
    by_form: dict[Branches, list[Graph]] = {}
    for graph in graphs:
        by_form.setdefault(graph.folded.network.branches, []).append(graph)
    forms = {branches: _costs(own) for branches, own in by_form.items()}
    first = next(iter(forms.values()))
    update = {"deployed": first.parameters, "multiply_adds": first.multiply_adds, "forms": forms}
    return manifest.model_copy(update={"counts": manifest.counts.model_copy(update=update)})


def _costs(graphs: Sequence[Graph]) -> FormCounts:
    """Of one form, whatever the sizes of its graphs."""
    folded = graphs[0].folded
    names = {name for graph in graphs for name in graph.weights}
    sizes = dict.fromkeys(graph.size or ANY_COUNTED for graph in graphs)
    return FormCounts(
        parameters=counts.deployed(folded.network),
        bytes=sum(weight_bytes([folded], names).values()),
        multiply_adds={shown(size): counts.multiply_adds(folded.network, size) for size in sizes},
    )


def backbone_digest(model: PTSAModel) -> str:
    """sha256 of the frozen backbone: of each tensor's name and float32 bytes, in alphabetical order.

    Two adaptations of one backbone have the same, whatever adapters they added.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(model.backbone.trunk.named_parameters()):
        digest.update(name.encode())
        digest.update(parameter.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
