"""Small constants of a graph, by what they hold: two passes that need the same one share it."""

import hashlib

import numpy as np
import onnx_ir as ir

__all__ = ["constant", "integers", "weight_of"]


def constant(graph: ir.Graph, array: np.ndarray) -> ir.Value:
    """An initializer with these contents; the same one for the same contents and type."""
    digest = hashlib.sha256(array.tobytes()).hexdigest()[:12]
    name = f"{array.dtype}_{'x'.join(map(str, array.shape)) or 'scalar'}_{digest}"
    if name not in graph.initializers:
        tensor = ir.tensor(array, name=name)
        shape, kind = ir.Shape(array.shape), ir.TensorType(tensor.dtype)
        graph.register_initializer(ir.Value(name=name, shape=shape, type=kind, const_value=tensor))
    return graph.initializers[name]


def integers(graph: ir.Graph, *numbers: int) -> ir.Value:
    """A vector of int64, as shapes and axes are."""
    return constant(graph, np.array(numbers, np.int64))


def weight_of(value: ir.Value | None, axes: int) -> tuple[int, ...] | None:
    """The shape of a constant with so many axes; None for anything else."""
    tensor = None if value is None else value.const_value
    shape = () if tensor is None else tuple(tensor.shape.numpy())
    return shape if len(shape) == axes else None
