"""Which models have one graph, and how long graphs take.

Only shapes decide on the time, so models whose graphs differ in the values of their weights alone share one.
"""

import hashlib
import json
from collections.abc import Mapping

import numpy as np
import torch

from benchmarks.measurement import alternate
from ptsa_serve.artifact import Artifact
from ptsa_serve.engines import EngineOptions, load_engine
from training.accounting.account import effective_tensors
from training.network.model import ModelConfig, PTSAModel
from training.network.plan import make_plan
from training.network.slots import Op

__all__ = ["Size", "graph_key", "latencies"]

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
            held = one.held() if isinstance(one, Op) else one.tensors
            facts.append([one.kind, dict(one.attributes)] if isinstance(one, Op) else [])
            facts.append([[r, list(t.shape), numbers.setdefault(id(t), len(numbers))] for r, t in held.items()])
    return hashlib.sha256(json.dumps([facts, size]).encode()).hexdigest()[:16]


def latencies(artifacts: Mapping[str, Artifact], size: Size, *, threads: int, rounds: int) -> dict[str, float]:
    """Milliseconds of one photo by each graph on the engine as it is served: medians of runs in turn."""
    engines = {
        name: load_engine("onnxruntime", artifact, EngineOptions(threads=threads))
        for name, artifact in artifacts.items()
    }
    photo = np.random.default_rng(0).integers(0, 255, (1, *size, 3), dtype=np.uint8)
    try:
        return alternate({name: lambda e=engine: e.run(photo) for name, engine in engines.items()}, rounds)
    finally:
        for engine in engines.values():
            engine.close()
