"""Take the rows that a chain of nodes moves around in one step: windows, shifts, padding, heads and their inverses.

Exact. A window of a shifted and padded map costs two Slices and a Concat an axis, a Pad and a Transpose, and its heads
a Transpose and a Slice more. All of that says where each row of numbers comes from, and one Gather follows it.
"""

import math

import numpy as np
import onnx_ir as ir

from export.passes.moves import NOWHERE, chain, is_copy, move, number_nodes
from export.passes.shapes import Shape, photo_shapes
from export.passes.tensors import integers

__all__ = ["GatherRows"]

# Rows of fewer numbers than half a cache line are copied faster by a Transpose.
LEAST_UNIT = 8


class GatherRows(ir.passes.InPlacePass):
    """Requires opset 13. Ensures nothing: a chain whose sizes are not known, or that mixes photos, stays.

    Each chain of moves from one value becomes Reshape to (N, rows, unit), a Pad by one row of zeros where the chain
    pads, Gather, Reshape. The numbers of the rows are computed in the graph, from 0, 1, 2, ... by the moves that were
    there: runtimes fold that into a constant when they load it, and it takes no room in the file.
    """

    def requires(self, model: ir.Model) -> None:
        if model.opset_imports.get("", 0) < 13:
            raise ir.passes.PreconditionError("moves with axes as an input need opset 13")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        shapes = photo_shapes(model)
        ends = [value for node in model.graph for value in node.outputs if _is_end(value)]
        changed = [_rewrite(model.graph, end, shapes) for end in ends]
        return ir.passes.PassResult(model, modified=any(changed))


def _is_end(value: ir.Value) -> bool:
    """Whether moves lead to it, and something else than a move of the same source uses it."""
    here = chain(value)
    if here is None or not here[1] or value.is_graph_output():
        return False
    later = [chain(output) for use in value.uses() for output in use.node.outputs]
    return any(there is None or there[0] is not here[0] for there in later)


def _rewrite(graph: ir.Graph, end: ir.Value, shapes: dict[ir.Value, Shape]) -> bool:
    found = chain(end)
    assert found is not None
    source, nodes = found
    copies = [node.op_type for node in nodes if is_copy(node)]
    as_short = set(copies) <= {"Gather", "Pad"} and copies.count("Gather") <= 1
    if as_short or source not in shapes or end not in shapes:
        return False
    numbered = _numbers(nodes, source, end, shapes[source])
    if numbered is None:
        return False
    unit, arrays = numbered
    rows = arrays[source].size
    moves, index = number_nodes(graph, nodes, arrays, rows, end)
    nowhere = arrays[end] == NOWHERE
    index.meta["rows"] = np.where(nowhere, rows, arrays[end]).ravel()
    flat = ir.node("Reshape", [source, integers(graph, -1, rows, unit)])
    padded = [ir.node("Pad", [flat.outputs[0], integers(graph, 0, 0, 0, 0, 1, 0)])] if nowhere.any() else []
    taken = ir.node("Gather", [[flat, *padded][-1].outputs[0], index], attributes={"axis": 1})
    shaped = ir.node("Reshape", [taken.outputs[0], integers(graph, -1, *shapes[end][1:])])
    producer = end.producer()
    assert producer is not None
    graph.insert_after(producer, [*moves, flat, *padded, taken, shaped])
    end.replace_all_uses_with(shaped.outputs[0])
    return True


def _numbers(
    nodes: list[ir.Node], source: ir.Value, end: ir.Value, shape: Shape
) -> tuple[int, dict[ir.Value, np.ndarray]] | None:
    """The length of a row, and the row numbers of one photo in every value of a chain; None where rows are cut."""
    size = math.prod(shape)
    two, one = (
        move(nodes, source, np.arange(photos * size).reshape(photos * shape[0], *shape[1:])) for photos in (2, 1)
    )
    if two is None or one is None:
        return None
    unit = math.gcd(*(array.shape[-1] if array.ndim else 1 for array in one.values()))
    if unit < LEAST_UNIT:
        return None
    rows = two[end].reshape(-1, unit)
    first = rows[:, :1]
    whole = np.where(first == NOWHERE, NOWHERE, first + np.arange(unit))
    begin, again = np.split(first, 2)
    apart = np.where(begin == NOWHERE, NOWHERE, begin + size)
    if (first[first != NOWHERE] % unit).any() or not np.array_equal(rows, whole) or not np.array_equal(again, apart):
        return None
    return unit, {value: array[..., ::unit] // unit for value, array in one.items()}
