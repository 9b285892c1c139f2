"""Compute linear layers where there are fewer rows: before a map is cut into padded windows, after it is whole again.

Exact: a linear layer does the same to each row, so it may change places with a Gather of rows. Windows of 7 x 7 make
980 tokens out of 24 x 32, and 294 out of 12 x 16.
"""

import onnx_ir as ir

from export.passes.linear import Linear, linears
from export.passes.moves import rows_of
from export.passes.shapes import Shape, photo_shapes
from export.passes.tensors import integers

__all__ = ["FewerRows"]


class FewerRows(ir.passes.InPlacePass):
    """Requires Gathers as `GatherRows` writes them. Ensures nothing: what has other users stays where it is.

    A linear layer moves before a Gather that takes as many rows as there are or more, and behind one that takes as many
    or fewer.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        shapes = photo_shapes(model)
        changed = [
            _earlier(model.graph, one, shapes) or _later(model.graph, one, shapes) for one in linears(model.graph)
        ]
        return ir.passes.PassResult(model, modified=any(changed))


def _earlier(graph: ir.Graph, layer: Linear, shapes: dict[ir.Value, Shape]) -> bool:
    gather = _before(layer.x)
    if gather is None or layer.y not in shapes:
        return False
    rows, index = gather.inputs
    assert rows is not None
    there, taken = shapes.get(rows, ()), shapes[gather.outputs[0]]
    if len(there) != 3 or there[2] != layer.inputs or there[1] > taken[1]:
        return False
    computed = layer.of(rows)
    again = ir.node("Gather", [computed[-1].outputs[0], index], attributes={"axis": 1})
    shaped = ir.node("Reshape", [again.outputs[0], integers(graph, -1, *shapes[layer.y][1:])])
    graph.insert_after(layer.nodes[-1], [*computed, again, shaped])
    layer.y.replace_all_uses_with(shaped.outputs[0])
    return True


def _later(graph: ir.Graph, layer: Linear, shapes: dict[ir.Value, Shape]) -> bool:
    gather = _behind(layer.y)
    if gather is None:
        return False
    rows, index = gather.inputs
    assert rows is not None
    there, taken = shapes.get(rows, ()), shapes[gather.outputs[0]]
    if len(there) != 3 or there[2] != layer.outputs or there[1] < taken[1]:
        return False
    flat = ir.node("Reshape", [layer.x, integers(graph, -1, there[1], layer.inputs)])
    again = ir.node("Gather", [flat.outputs[0], index], attributes={"axis": 1})
    computed = layer.of(again.outputs[0])
    graph.insert_after(gather, [flat, again, *computed])
    gather.outputs[0].replace_all_uses_with(computed[-1].outputs[0])
    return True


def _before(value: ir.Value) -> ir.Node | None:
    """The Gather of rows whose result, reshaped, is `value`."""
    while (node := value.producer()) is not None:
        if node.op_type == "Gather":
            return node if _takes_rows(node) else None
        if node.op_type != "Reshape" or node.inputs[0] is None:
            return None
        value = node.inputs[0]
    return None


def _behind(value: ir.Value) -> ir.Node | None:
    """The Gather of rows that is all that uses `value`, reshaped."""
    while len(value.uses()) == 1:
        ((node, position),) = value.uses()
        if node.op_type == "Gather":
            return node if position == 0 and _takes_rows(node) else None
        if node.op_type != "Reshape":
            return None
        value = node.outputs[0]
    return None


def _takes_rows(gather: ir.Node) -> bool:
    return gather.attributes.get_int("axis", 0) == 1 and rows_of(gather.inputs[1]) is not None
