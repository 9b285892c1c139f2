"""How long a graph takes on the engine at hand, with the options that it is served with. Weights do not matter: random.

What groups learnt must differ, or their branches would be compiled as one.
"""

import time
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes.common import DeduplicateInitializersPass

from export.emit import emit
from export.fold import fold
from ptsa_serve.engines.onnxruntime import session_options
from training.network.model import ModelConfig, PTSAModel

__all__ = ["milliseconds", "random_model", "write_graph"]


def random_model(config: ModelConfig) -> PTSAModel:
    """A model whose groups all differ."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = PTSAModel(config).eval()
        for parameter in model.method.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.01)
    return model


def write_graph(config: ModelConfig, size: tuple[int, int], path: Path) -> None:
    """The graph for photos of `size` (H, W) with random weights, as one ONNX file."""
    graph = emit(fold(random_model(config), size).network)
    DeduplicateInitializersPass(size_limit=2**40)(graph)
    part = path.with_suffix(".part")
    part.write_bytes(ir.to_proto(graph).SerializeToString())
    part.replace(path)


def milliseconds(path: Path, size: tuple[int, int], *, threads: int, rounds: int = 11) -> float:
    """The median of `rounds` runs of one photo, after one that does not count."""
    import onnxruntime as ort

    options = session_options(ort, threads, {})
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    photo = {session.get_inputs()[0].name: np.zeros((1, *size, 3), np.uint8)}
    times = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        session.run(None, photo)
        times.append(time.perf_counter() - began)
    return 1000 * float(np.median(times[1:]))
