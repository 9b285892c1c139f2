"""How long a graph takes on the engine at hand, as it is served. Weights do not matter: they are random.

Models whose graphs are to be timed are compiled as trained ones are, through a checkpoint; see `benchmarks parameters`.
"""

import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from export.fold import fold
from export.graphs import build_graph, files_of
from export.manifest import describe, with_costs
from ptsa_serve.artifact import Artifact, write_artifact
from ptsa_serve.engines import EngineOptions, load_engine
from ptsa_serve.errors import PTSAError
from training.network.checkpoint import load_checkpoint, save_checkpoint
from training.network.model import ModelConfig, PTSAModel

__all__ = ["compiled", "milliseconds", "random_model"]

Size = tuple[int, int]


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
    """The artifact in `folder`, for photos of `size` (H, W): from an earlier run or made now, in up to some minutes."""
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
    graph = build_graph(fold(model), size)
    return write_artifact(folder, with_costs(manifest, [graph]), files_of([graph]))


def milliseconds(artifact: Artifact, size: Size, *, threads: int, rounds: int = 11) -> float:
    """The median of `rounds` runs of one photo, after one that does not count."""
    engine = load_engine("onnxruntime", artifact, EngineOptions(threads=threads))
    photo = np.zeros((1, *size, 3), np.uint8)
    times = []
    try:
        for _ in range(rounds + 1):
            began = time.perf_counter()
            engine.run(photo)
            times.append(time.perf_counter() - began)
    finally:
        engine.close()
    return 1000 * float(np.median(times[1:]))
