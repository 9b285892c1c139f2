"""Nodes that move rows of numbers and change none: what they do to an array, and to a tensor of row numbers.

A row is `unit` numbers side by side on the last axis. What moved rows moves their numbers just as well; the last axis
is then `unit` times shorter.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from export.passes.tensors import constant, integers

__all__ = ["NOWHERE", "chain", "is_copy", "move", "number_nodes", "rows_of"]

# The number of what a Pad adds.
NOWHERE = -1

# Moves that a runtime does without touching the numbers.
_FREE = frozenset({"Reshape", "Squeeze", "Unsqueeze"})


def _concat(node: ir.Node, *parts: np.ndarray) -> np.ndarray:
    axis = node.attributes.get_int("axis", 0)
    _within(axis, parts[0])
    return np.concatenate(parts, axis)


def _slice(node: ir.Node, x: np.ndarray, starts, ends, axes=None, steps=None) -> np.ndarray:
    index = [slice(None)] * x.ndim
    for i, axis in enumerate(range(len(starts)) if axes is None else axes):
        _within(axis, x)
        index[axis] = slice(int(starts[i]), int(ends[i]), 1 if steps is None else int(steps[i]))
    return x[tuple(index)]


def _split(node: ir.Node, x: np.ndarray, sizes=None) -> list[np.ndarray]:
    axis = node.attributes.get_int("axis", 0)
    return np.split(x, len(node.outputs) if sizes is None else np.cumsum(sizes)[:-1], axis)


def _within(axis: int, x: np.ndarray) -> None:
    """Raises ValueError for the last axis: rows would be cut, or grow."""
    if axis % x.ndim == x.ndim - 1:
        raise ValueError("the last axis")


def _pad(node: ir.Node, x: np.ndarray, pads, value=None) -> np.ndarray:
    return np.pad(x, np.reshape(pads, (2, -1)).T, constant_values=NOWHERE)


# By operator: a node and its inputs as arrays -> its output; a list where it has several.
_MOVES: Mapping[str, Callable[..., np.ndarray | list[np.ndarray]]] = {
    "Concat": _concat,
    "Gather": lambda node, x, index: np.take(x, index, node.attributes.get_int("axis", 0)),
    "Pad": _pad,
    "Reshape": lambda node, x, shape: x.reshape(shape),
    "Slice": _slice,
    "Split": _split,
    "Squeeze": lambda node, x, axes: x.squeeze(tuple(axes)),
    "Transpose": lambda node, x: x.transpose(node.attributes["perm"].as_ints()),
    "Unsqueeze": lambda node, x, axes: np.expand_dims(x, tuple(axes)),
}


def is_copy(node: ir.Node) -> bool:
    """Whether a move costs time."""
    return node.op_type not in _FREE


def rows_of(index: ir.Value | None) -> np.ndarray | None:
    """The row numbers that a Gather of a pass takes, from the pass that made it; or what a constant holds."""
    if index is None:
        return None
    if "rows" in index.meta:
        return index.meta["rows"]
    return None if index.const_value is None else index.const_value.numpy()


def chain(value: ir.Value) -> tuple[ir.Value, list[ir.Node]] | None:
    """The value that only moves lead from to `value`, and those nodes, first first; None where there are several."""
    found: dict[ir.Node, None] = {}
    sources: dict[ir.Value, None] = {}
    waiting = [value]
    while waiting:
        node = waiting[-1].producer()
        if node is None or not _is_move(node):
            sources[waiting.pop()] = None
        elif node in found:
            waiting.pop()
        elif before := [x for x in _moved(node) if x not in sources and x.producer() not in found]:
            waiting += before
        else:
            found[node] = None
    return (next(iter(sources)), list(found)) if len(sources) == 1 else None


def move(nodes: Sequence[ir.Node], source: ir.Value, array: np.ndarray) -> dict[ir.Value, np.ndarray] | None:
    """Every value of a chain, for `array` as its source; None for a shape that the chain is not made for."""
    arrays = {source: array}
    try:
        for node in nodes:
            inputs = [arrays[x] if x in arrays else rows_of(x) for x in node.inputs]
            result = _MOVES[node.op_type](node, *inputs)
            arrays |= zip(node.outputs, result if isinstance(result, list) else [result], strict=True)
    except ValueError:
        return None
    return arrays


def number_nodes(
    graph: ir.Graph, nodes: Sequence[ir.Node], arrays: Mapping[ir.Value, np.ndarray], rows: int, end: ir.Value
) -> tuple[list[ir.Node], ir.Value]:
    """Nodes that move the row numbers 0 to `rows` - 1 as `nodes` move rows, and those that come to `end`: int32, flat.

    arrays: what `move` found for the row numbers. What a Pad adds has the number `rows`.
    """
    first = ir.node("Range", [constant(graph, np.array(edge, np.int32)) for edge in (0, rows, 1)])
    source = next(x for x in nodes[0].inputs if x is not None and x in arrays)
    start = _reshaped(graph, first.outputs[0], arrays[source].shape)
    made, numbers = [first, start], {source: start.outputs[0]}
    for node in nodes:
        inputs = [numbers.get(x, x) for x in node.inputs if x is not None]
        for output in node.outputs:
            if not is_copy(node):
                made.append(_reshaped(graph, inputs[0], arrays[output].shape))
            elif node.op_type == "Pad":
                made.append(ir.node("Pad", [*inputs[:2], constant(graph, np.array(rows, np.int32))]))
            elif node.op_type == "Split":
                made.append(_part(graph, node, inputs[0], arrays, output))
            else:
                made.append(ir.node(node.op_type, inputs, attributes=dict(node.attributes)))
            numbers[output] = made[-1].outputs[0]
    made.append(_reshaped(graph, numbers[end], (-1,)))
    return made, made[-1].outputs[0]


def _is_move(node: ir.Node) -> bool:
    """Whether it moves whole rows, and how is known now."""
    if node.op_type not in _MOVES or node.domain:
        return False
    moved = _moved(node)
    if any(x is not None and x not in moved and rows_of(x) is None for x in node.inputs):
        return False
    match node.op_type:
        case "Transpose":
            perm = node.attributes["perm"].as_ints()
            return perm[-1] == len(perm) - 1
        case "Pad":
            return node.attributes.get_string("mode", "constant") == "constant" and _by_zeros(node.inputs[2:])
    return True


def _moved(node: ir.Node) -> list[ir.Value]:
    """The inputs whose numbers are moved."""
    inputs = node.inputs if node.op_type == "Concat" else node.inputs[:1]
    return [value for value in inputs if value is not None]


def _by_zeros(values: Sequence[ir.Value | None]) -> bool:
    """Of a Pad's inputs behind the widths: the value, which is 0 unless given, and no axes."""
    given = [rows_of(value) for value in values if value is not None]
    return not given or (len(given) == 1 and given[0] is not None and not given[0].any())


def _reshaped(graph: ir.Graph, value: ir.Value, shape: Sequence[int]) -> ir.Node:
    return ir.node("Reshape", [value, integers(graph, *shape)])


def _part(graph: ir.Graph, split: ir.Node, whole: ir.Value, arrays: Mapping[ir.Value, np.ndarray], part: ir.Value):
    axis = split.attributes.get_int("axis", 0)
    ends = np.cumsum([arrays[output].shape[axis] for output in split.outputs])
    end = int(ends[list(split.outputs).index(part)])
    start = end - arrays[part].shape[axis]
    return ir.node("Slice", [whole, *(integers(graph, number) for number in (start, end, axis))])
