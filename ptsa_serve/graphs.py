"""A graph as an engine takes it: cut to the tasks that are asked for, with the names of its weights in the shared file.

A branch that nobody asked for costs time all the same in a runtime that is asked for fewer outputs (ONNX Runtime runs
every node), so what is not asked for is taken out of the graph.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Graph", "cut", "with_inputs"]


@dataclass(frozen=True, slots=True)
class Graph:
    """data: an ONNX file's bytes. tasks: its outputs. weights: its large tensors, which the shared file has."""

    data: bytes
    tasks: tuple[str, ...]
    weights: tuple[str, ...]


def cut(data: bytes, tasks: Sequence[str]) -> Graph:
    """The part of the graph `data` that the outputs `tasks` need. Raises ValueError for other bytes."""
    import onnx

    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:  # of the parser, whose own package this one does not know
        raise ValueError(f"no ONNX graph ({error})") from None
    graph = model.graph
    if {output.name for output in graph.output} != set(tasks):
        _keep(graph, set(tasks))
        data = model.SerializeToString()
    external = onnx.TensorProto.EXTERNAL
    weights = tuple(tensor.name for tensor in graph.initializer if tensor.data_location == external)
    return Graph(data, tuple(output.name for output in graph.output), weights)


def with_inputs(graph: Graph) -> bytes:
    """The graph with its large tensors as further inputs of the same names, for a runtime that is given them so."""
    import onnx

    model = onnx.load_model_from_string(graph.data)
    large = set(graph.weights)
    for tensor in model.graph.initializer:
        if tensor.name in large:
            model.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    _replace(model.graph, "initializer", [tensor for tensor in model.graph.initializer if tensor.name not in large])
    return model.SerializeToString()


def _keep(graph: Any, outputs: set[str]) -> None:
    needed, nodes = set(outputs), []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            nodes.append(node)
            needed.update(node.input)
    kept = {
        "node": nodes[::-1],
        "initializer": [tensor for tensor in graph.initializer if tensor.name in needed],
        "output": [output for output in graph.output if output.name in outputs],
    }
    for field, values in kept.items():
        _replace(graph, field, values)


def _replace(graph: Any, field: str, values: Sequence[Any]) -> None:
    # Copied before the field is emptied: what was taken out of it would be no longer there.
    copies = [type(value).FromString(value.SerializeToString()) for value in values]
    graph.ClearField(field)
    getattr(graph, field).extend(copies)
