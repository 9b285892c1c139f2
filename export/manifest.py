"""What an artifact says about itself: tasks, tree, costs, origin."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import ptsa_serve
from export import counts
from export.graphs import Graph
from ptsa_serve.manifest import Backbone, Counts, InputSpec, Manifest, TaskRecord, Tree
from training.checkpoint import read_info, sha256
from training.model import PTSAModel

__all__ = ["backbone_digest", "describe"]


def describe(
    checkpoint: Path,
    model: PTSAModel,
    graphs: Sequence[Graph],
    *,
    name: str,
    version: str,
    metrics: Sequence[Mapping[str, Any]] = (),
    licence: str = "",
) -> Manifest:
    """The manifest of a model, without files and parity. Raises ValueError for a name or version that none may have."""
    info = read_info(checkpoint)
    return Manifest(
        name=name,
        version=version,
        input=InputSpec(sizes=tuple(graph.size for graph in graphs)),
        tasks=tuple(TaskRecord.of(task) for task in model.tasks.values()),
        tree=Tree.model_validate(model.config.tree.to_json()),
        backbone=Backbone(name=model.config.backbone, sha256=backbone_digest(model)),
        counts=Counts(
            frozen=counts.frozen(model),
            trainable=counts.trainable(model),
            deployed=counts.deployed(graphs[0].folded.network),
            multiply_adds={f"{g.size[0]}x{g.size[1]}": g.multiply_adds for g in graphs},
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


def backbone_digest(model: PTSAModel) -> str:
    """sha256 of the frozen backbone: of each tensor's name and float32 bytes, in alphabetical order.

    Two adaptations of one backbone have the same, whatever adapters they added.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(model.backbone.swin.named_parameters()):
        if not name.endswith((".up", ".down")):
            digest.update(name.replace(".frozen.", ".").encode())
            digest.update(parameter.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
