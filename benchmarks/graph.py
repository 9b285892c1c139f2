"""How well does the graph use the machine, and what does one graph for all tasks save against one graph a task?

`graph_ms` is the engine as it is served. `graph_default_options_ms` is the same graph with ONNX Runtime's own options,
which are faster and take more memory (the table in `ptsa_serve/engines/onnxruntime.py`). The single-task graphs are cut
out of the shipped graph, each what an export of that one task would be, and run with the options that are served. The
graph's multiply-adds are counted in the ONNX file itself. The ceiling is a square fp32 product of the same run and the
same threads, by the faster of ONNX Runtime and NumPy. All runs alternate; figures are medians.
"""

import math
from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper, shape_inference

from benchmarks.measurement import Measurement, alternate
from ptsa_serve.artifact import Artifact
from ptsa_serve.engines import load_engine
from ptsa_serve.engines.onnxruntime import session_options

__all__ = ["measure_graph"]

_SQUARE = 2048


def measure_graph(artifact: Artifact, *, size: tuple[int, int], threads: int, rounds: int) -> Measurement:
    """Times the graph of `size` (H, W), one graph for each of its tasks, and a matrix product, in turn."""
    engine = load_engine("onnxruntime", artifact, threads)
    model = onnx.load(artifact.graph_path(size), load_external_data=False)
    arrays = artifact.initializers()
    tasks = [output.name for output in model.graph.output]
    graphs = {task: cut(model, task) for task in tasks}
    adds = {name: multiply_adds(graph) for name, graph in {"all": model, **graphs}.items()}
    photo = np.random.default_rng(0).integers(0, 255, (1, *size, 3), dtype=np.uint8)
    runs: dict[str, Callable[[], object]] = {"all": lambda: engine.run(photo)}
    feeds = {model.graph.input[0].name: photo}
    runs["default_options"] = _runner(model, arrays, threads, feeds, served=False)
    runs |= {task: _runner(graph, arrays, threads, feeds, served=True) for task, graph in graphs.items()}
    square = np.random.default_rng(0).standard_normal((_SQUARE, _SQUARE), dtype=np.float32)
    runs["product_ort"] = _runner(_product_graph(), {}, threads, {"a": square, "b": square}, served=False)
    runs["product_numpy"] = lambda: square @ square
    ms = alternate(runs, rounds)
    engine.close()
    ceiling = 2 * _SQUARE**3 / min(ms["product_ort"], ms["product_numpy"]) / 1e6
    rate = 2 * adds["all"] / ms["all"] / 1e6
    figures = {
        "graph_ms": ms["all"],
        "graph_default_options_ms": ms["default_options"],
        "graph_giga_multiply_adds": adds["all"] / 1e9,
        "graph_gflop_per_second": rate,
        "matrix_product_gflop_per_second": ceiling,
        "share_of_matrix_product_percent": 100 * rate / ceiling,
        **{f"only_{task}_ms": ms[task] for task in tasks},
        "all_in_one_against_one_each_ratio": ms["all"] / sum(ms[task] for task in tasks),
        "multiply_adds_ratio": adds["all"] / sum(adds[task] for task in tasks),
    }
    conditions = {
        "size": f"{size[1]}x{size[0]}",
        "threads": threads,
        "rounds": rounds,
        "batch": 1,
        "options": "as served, but graph_default_options_ms",
    }
    return Measurement("How well does one graph use the machine, against a graph a task?", figures, conditions)


def cut(model: onnx.ModelProto, output: str) -> onnx.ModelProto:
    """The part of a graph that one output needs."""
    needed, nodes = {output}, []
    for node in reversed(model.graph.node):
        if needed.intersection(node.output):
            nodes.append(node)
            needed.update(node.input)
    part = onnx.ModelProto()
    part.CopyFrom(model)
    del part.graph.node[:], part.graph.initializer[:], part.graph.output[:]
    part.graph.node.extend(reversed(nodes))
    part.graph.initializer.extend(t for t in model.graph.initializer if t.name in needed)
    part.graph.output.extend(o for o in model.graph.output if o.name == output)
    return part


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


def _runner(
    model: onnx.ModelProto, arrays: dict[str, np.ndarray], threads: int, feeds: dict, *, served: bool
) -> Callable[[], object]:
    """Runs a graph with the options of the served engine, or with ONNX Runtime's own on as many threads."""
    import onnxruntime as ort  # the engine has it imported already, in its own way

    used = [t.name for t in model.graph.initializer if t.name in arrays]
    values = {name: ort.OrtValue.ortvalue_from_numpy(arrays[name]) for name in used}
    if served:
        options = session_options(ort, threads, values)
    else:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        if used:
            options.add_external_initializers(used, list(values.values()))
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    # The session does not keep the arrays alive: the default argument does.
    return lambda keep=values: session.run(None, feeds)


def _product_graph() -> onnx.ModelProto:
    side = [_SQUARE, _SQUARE]
    names = [helper.make_tensor_value_info(name, TensorProto.FLOAT, side) for name in "abc"]
    graph = helper.make_graph([helper.make_node("MatMul", ["a", "b"], ["c"])], "product", names[:2], names[2:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
