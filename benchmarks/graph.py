"""How well does the graph use the machine, and what does one graph for all tasks save against one graph a task?

`graph_ms` is ONNX Runtime in fp32 as it is served, `graph_default_options_ms` the same graph with its own options,
`fastest_engine_ms` what the server chooses here, `fastest_fp32_ms` what it chooses in fp32. The single-task graphs are
cut out of the shipped graph, as the engines do for a request of that one task: `only_..._ms` is as served,
`fastest_only_..._ms` by the engine that is chosen, and one graph is set against all of them with the runtime's own
options for each. The graph's multiply-adds are counted in the ONNX file itself. The ceiling is a square fp32 product of
the same run and the same threads, by the faster of ONNX Runtime and NumPy. All runs alternate; figures are medians.
"""

import math
from collections.abc import Callable, Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper, shape_inference

from benchmarks.measurement import Measurement, alternate
from ptsa_serve.artifact import Artifact
from ptsa_serve.engines import Engine, EngineOptions, load_engine
from ptsa_serve.graphs import Graph
from ptsa_serve.loading import load_predictor
from ptsa_serve.settings import Settings
from ptsa_serve.variants import Variant

__all__ = ["measure_graph"]

_SQUARE = 2048


def measure_graph(artifact: Artifact, *, threads: int, rounds: int) -> Measurement:
    """Times the graph of a photo of 640 x 480, one graph for each of its tasks, and a matrix product, in turn."""
    engine = load_engine("onnxruntime", artifact, EngineOptions(threads=threads))
    size = engine.sizes.choose(480, 640)
    variant = artifact.variants.choose(artifact.variants.form(), size, tasks := tuple(artifact.manifest.task_table()))
    graphs = {"all": artifact.graph(variant)} | {task: artifact.graph(variant, [task]) for task in tasks}
    adds = {name: multiply_adds(onnx.load_model_from_string(graph.data)) for name, graph in graphs.items()}
    photo = np.random.default_rng(0).integers(0, 255, (1, *size, 3), dtype=np.uint8)
    runs: dict[str, Callable[[], object]] = {"all": lambda: engine.run(photo)}
    runs |= {
        f"{name}_by_default": _default_options(artifact, variant, graph, threads, photo)
        for name, graph in graphs.items()
    }
    fastest, fastest_fp32 = _fastest(artifact, threads), _fastest(artifact, threads, precision="fp32")
    runs["fastest"] = lambda: fastest.run(photo)
    runs["fastest_fp32"] = lambda: fastest_fp32.run(photo)
    for task in tasks:
        runs[task] = lambda task=task: engine.run(photo, [task])
        runs[f"fastest_{task}"] = lambda task=task: fastest.run(photo, [task])
    square = np.random.default_rng(0).standard_normal((_SQUARE, _SQUARE), dtype=np.float32)
    runs["product_ort"] = _product(square, threads)
    runs["product_numpy"] = lambda: square @ square
    ms = alternate(runs, rounds)
    for each in (engine, fastest, fastest_fp32):
        each.close()
    figures = _figures(ms, adds)
    conditions = {"size": f"{size[1]}x{size[0]}", "threads": threads, "rounds": rounds, "batch": 1}
    conditions["options"] = "as served, but graph_default_options_ms and the ratio of one graph against one each"
    conditions["fastest"] = f"{fastest.name} {fastest.version} {fastest.precision}"
    conditions["fastest_fp32"] = f"{fastest_fp32.name} {fastest_fp32.version}"
    return Measurement("How well does one graph use the machine, against a graph a task?", figures, conditions)


def _figures(ms: Mapping[str, float], adds: Mapping[str, int]) -> dict[str, float]:
    """adds: multiply-adds of all tasks' graph, "all", and of each task's."""
    tasks = [name for name in adds if name != "all"]
    ceiling = 2 * _SQUARE**3 / min(ms["product_ort"], ms["product_numpy"]) / 1e6
    rates = {name: 2 * adds["all"] / ms[name] / 1e6 for name in ("all", "fastest_fp32")}
    return {
        "graph_ms": ms["all"],
        "graph_default_options_ms": ms["all_by_default"],
        "fastest_engine_ms": ms["fastest"],
        "fastest_against_default_options_ratio": ms["fastest"] / ms["all_by_default"],
        "fastest_fp32_ms": ms["fastest_fp32"],
        "fastest_fp32_against_default_options_ratio": ms["fastest_fp32"] / ms["all_by_default"],
        "graph_giga_multiply_adds": adds["all"] / 1e9,
        "graph_gflop_per_second": rates["all"],
        "matrix_product_gflop_per_second": ceiling,
        "share_of_matrix_product_percent": 100 * rates["all"] / ceiling,
        "fastest_fp32_share_of_matrix_product_percent": 100 * rates["fastest_fp32"] / ceiling,
        **{f"only_{task}_ms": ms[task] for task in tasks},
        **{f"fastest_only_{task}_ms": ms[f"fastest_{task}"] for task in tasks},
        "all_in_one_against_one_each_ratio": ms["all_by_default"] / sum(ms[f"{task}_by_default"] for task in tasks),
        "multiply_adds_ratio": adds["all"] / sum(adds[task] for task in tasks),
    }


def _fastest(artifact: Artifact, threads: int, **asked: str) -> Engine:
    settings = {"model": artifact.folder, "threads": threads, **asked}
    return load_predictor(Settings.model_validate(settings), tune=True).engine


def multiply_adds(model: onnx.ModelProto) -> int:
    """Multiply-adds of a graph's matrix products and convolutions for one photo."""
    inferred = onnx.ModelProto()
    inferred.CopyFrom(model)
    inferred.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    graph = shape_inference.infer_shapes(inferred, data_prop=True).graph
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in (*graph.value_info, *graph.output)}
    shapes |= {t.name: list(t.dims) for t in graph.initializer}
    total = 0
    for node in graph.node:
        if node.op_type in ("MatMul", "Gemm", "Conv"):
            weight, result = shapes[node.input[1]], shapes[node.output[0]]
            if node.op_type == "Conv":
                inner = math.prod(weight[1:])
            else:
                transposed = any(a.name == "transB" and a.i for a in node.attribute)
                inner = weight[-1] if transposed else weight[-2]
            total += math.prod(result) * inner
    if not total:
        raise ValueError("no multiply-adds found: did shape inference fail on this graph?")
    return total


def _default_options(
    artifact: Artifact, variant: Variant, graph: Graph, threads: int, photo: np.ndarray
) -> Callable[[], object]:
    """Runs `graph`, cut out of `variant` or that itself, with ONNX Runtime's own options on as many threads."""
    import onnxruntime as ort  # the engine has it imported already, in its own way

    arrays = artifact.weights(variant).make(graph.weights)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    if arrays:
        values = [ort.OrtValue.ortvalue_from_numpy(array) for array in arrays.values()]
        options.add_external_initializers(list(arrays), values)
    session = ort.InferenceSession(graph.data, options, providers=["CPUExecutionProvider"])
    # The session does not keep the arrays alive: the default argument does.
    return lambda keep=arrays: session.run(None, {artifact.manifest.input.name: photo})


def _product(side: np.ndarray, threads: int) -> Callable[[], object]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    data = _product_graph().SerializeToString()
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"a": side, "b": side})


def _product_graph() -> onnx.ModelProto:
    side = [_SQUARE, _SQUARE]
    names = [helper.make_tensor_value_info(name, TensorProto.FLOAT, side) for name in "abc"]
    graph = helper.make_graph([helper.make_node("MatMul", ["a", "b"], ["c"])], "product", names[:2], names[2:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
