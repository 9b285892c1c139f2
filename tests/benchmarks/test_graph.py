from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks.graph import measure_graph, multiply_adds
from ptsa_serve.artifact import Artifact
from ptsa_serve.engines import EngineOptions, load_engine
from ptsa_serve.engines.onnxruntime import OnnxRuntimeEngine
from ptsa_serve.predictor import Predictor
from ptsa_serve.settings import Settings
from ptsa_serve.tasks import TASKS


def two_headed() -> onnx.ModelProto:
    """image (N, 4, 4, 3) -> shared product (3 x 8) -> `a` (8 x 2), `b` (8 x 5)."""
    weights = {"w": (3, 8), "wa": (8, 2), "wb": (8, 5)}
    nodes = [
        helper.make_node("MatMul", ["image", "w"], ["h"]),
        helper.make_node("MatMul", ["h", "wa"], ["a"]),
        helper.make_node("MatMul", ["h", "wb"], ["b"]),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "two",
        [value("image", TensorProto.FLOAT, ["N", 4, 4, 3])],
        [value("a", TensorProto.FLOAT, ["N", 4, 4, 2]), value("b", TensorProto.FLOAT, ["N", 4, 4, 5])],
        [numpy_helper.from_array(np.zeros(s, np.float32), n) for n, s in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_multiply_adds_of_products() -> None:
    assert multiply_adds(two_headed()) == 16 * (3 * 8 + 8 * 2 + 8 * 5)


def test_multiply_adds_of_a_convolution() -> None:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])],
        "conv",
        [value("x", TensorProto.FLOAT, ["N", 6, 5, 4])],
        [value("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.zeros((7, 6, 3, 3), np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    assert multiply_adds(model) == 5 * 4 * 7 * 6 * 9


def test_what_is_timed_is_the_engine_as_served(tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All runs are the served engine's, but those named for ONNX Runtime's own options and the matrix product."""
    ran = []
    run = OnnxRuntimeEngine.run

    def noted(
        engine: OnnxRuntimeEngine, batch: np.ndarray, tasks: list[str] | None = None, **how: bool
    ) -> dict[str, np.ndarray]:
        ran.append(tasks)
        return run(engine, batch, tasks, **how)

    def reference(settings: Settings, *, tune: bool) -> Predictor:
        """In place of eight seconds in which engines are compared."""
        assert tune
        artifact = Artifact.open(settings.model or tiny_artifact)
        return Predictor(artifact, load_engine("onnxruntime", artifact, EngineOptions(settings.threads)))

    monkeypatch.setattr("benchmarks.graph.load_predictor", reference)
    monkeypatch.setattr(OnnxRuntimeEngine, "run", noted)
    measurement = measure_graph(Artifact.open(tiny_artifact), threads=1, rounds=2)
    # Three rounds, twice in each.
    assert all(ran.count([task]) == 2 * 3 * 2 for task in TASKS)  # by the engine that is fp32's, and by the fastest
    assert ran.count(None) == 3 * 3 * 2  # all tasks, also by the fastest, and by the fastest in fp32
    assert {"graph_ms", "graph_default_options_ms", "only_depth_ms"} <= measurement.figures.keys()
    assert "as served" in str(measurement.conditions["options"])
