"""Reshape once where several Reshapes follow each other: each is a call that a runtime makes."""

import onnx_ir as ir

from export.passes.moves import rows_of

__all__ = ["MergeReshapes"]


class MergeReshapes(ir.passes.InPlacePass):
    """Requires nothing. Ensures that no Reshape to a known shape reads another one."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        changed = False
        for node in model.graph:
            while (earlier := _earlier(node)) is not None:
                node.replace_input_with(0, earlier.inputs[0])
                changed = True
        return ir.passes.PassResult(model, modified=changed)

    def ensures(self, model: ir.Model) -> None:
        if any(_earlier(node) is not None for node in model.graph):
            raise ir.passes.PostconditionError("two Reshapes follow each other")


def _earlier(node: ir.Node) -> ir.Node | None:
    """The Reshape before a Reshape whose shape says all: a 0 would copy a side of its input."""
    if node.op_type != "Reshape" or node.inputs[0] is None:
        return None
    shape, before = rows_of(node.inputs[1]), node.inputs[0].producer()
    known = shape is not None and (shape != 0).all()
    return before if known and before is not None and before.op_type == "Reshape" else None
