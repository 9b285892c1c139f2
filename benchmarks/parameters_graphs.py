"""Compiled graphs of models with random weights, kept on the disk, and how long they take.

Only shapes decide on the time, so models whose graphs differ in the values of their weights alone share one.
"""

import hashlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from benchmarks.measurement import alternate
from export.graphs import build_graph, files_of
from export.manifest import describe, with_costs
from ptsa_serve.artifact import Artifact, write_artifact
from ptsa_serve.engines import load_engine
from ptsa_serve.errors import PTSAError
from training.account import effective_tensors
from training.checkpoint import load_checkpoint, save_checkpoint
from training.model import ModelConfig, PTSAModel
from training.plan import make_plan
from training.slots import Op

__all__ = ["Size", "compiled", "graph_key", "latencies", "random_model"]

Size = tuple[int, int]


def graph_key(config: ModelConfig, size: Size) -> str:
    """Equal for models whose graphs for photos of `size` (H, W) are the same but for the values of their weights."""
    with torch.device("meta"):
        model = PTSAModel(config).eval()
    plan = make_plan(model.backbone.slots, model.method.layout, model.method.version)
    found = effective_tensors(model, plan)
    facts: list = [config.backbone, config.decoder, config.width, [[t.name, t.kind, t.channels] for t in config.tasks]]
    for slot in model.backbone.slots:
        keys = list(dict.fromkeys(node.key for node in plan[slot.name]))
        facts.append([[node.parent, keys.index(node.key)] for node in plan[slot.name]])
        numbers: dict[int, int] = {}  # which nodes have a tensor in common
        for key in keys:
            one = found[slot.name, key]
            held = {**one.base, "up": one.up, "down": one.down} if isinstance(one, Op) else one.tensors
            facts.append([[r, list(t.shape), numbers.setdefault(id(t), len(numbers))] for r, t in held.items()])
    return hashlib.sha256(json.dumps([facts, size]).encode()).hexdigest()[:16]


def random_model(config: ModelConfig) -> PTSAModel:
    """Random in every tensor that the method trains, so that no two groups are equal and would be compiled as one."""
    torch.manual_seed(0)
    model = PTSAModel(config).eval()
    with torch.no_grad():
        for name in model.owners():
            parameter = model.get_parameter(name)
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    return model


def compiled(config: ModelConfig, size: Size, folder: Path) -> Artifact:
    """The artifact in `folder`, from an earlier run or made now: half a minute to some minutes."""
    try:
        return Artifact.open(folder)
    except PTSAError:
        pass
    with tempfile.TemporaryDirectory() as temporary:
        # Through a checkpoint, as a trained model comes: matrices are rounded to fp16.
        checkpoint = Path(temporary) / "model.safetensors"
        save_checkpoint(random_model(config), checkpoint, info={})
        model = load_checkpoint(checkpoint)
        manifest = describe(checkpoint, model, [size], name="random-weights", version="1")
    graph = build_graph(model, size)
    return write_artifact(folder, with_costs(manifest, [graph]), files_of([graph]))


def latencies(artifacts: Mapping[str, Artifact], size: Size, *, threads: int, rounds: int) -> dict[str, float]:
    """Milliseconds of one photo by each graph on the engine as it is served: medians of runs in turn."""
    engines = {name: load_engine("onnxruntime", artifact, threads) for name, artifact in artifacts.items()}
    photo = np.random.default_rng(0).integers(0, 255, (1, *size, 3), dtype=np.uint8)
    try:
        return alternate({name: lambda e=engine: e.run(photo) for name, engine in engines.items()}, rounds)
    finally:
        for engine in engines.values():
            engine.close()
