"""Linear layers as the exporter writes them: MatMul with a constant matrix, and mostly Add of a constant vector."""

from dataclasses import dataclass

import onnx_ir as ir

from export.passes.tensors import weight_of

__all__ = ["Linear", "linears"]


@dataclass(frozen=True)
class Linear:
    """y = x @ weight + bias on the last axis: `inputs` numbers to `outputs` numbers."""

    nodes: tuple[ir.Node, ...]
    x: ir.Value
    y: ir.Value
    weight: ir.Value
    bias: ir.Value | None
    inputs: int
    outputs: int

    def of(self, x: ir.Value) -> list[ir.Node]:
        """New nodes that do the same to `x`."""
        made = [ir.node("MatMul", [x, self.weight])]
        if self.bias is not None:
            made.append(ir.node("Add", [made[0].outputs[0], self.bias]))
        return made


def linears(graph: ir.Graph) -> list[Linear]:
    """All of a graph, in its order."""
    return [layer for node in graph if node.op_type == "MatMul" and (layer := _linear(node)) is not None]


def _linear(node: ir.Node) -> Linear | None:
    x, weight = node.inputs
    shape = weight_of(weight, 2)
    if x is None or weight is None or shape is None:
        return None
    inputs, outputs = shape
    add = next((use.node for use in node.outputs[0].uses()), node)
    if add.op_type == "Add" and len(node.outputs[0].uses()) == 1:
        for bias in add.inputs:
            if bias is not None and weight_of(bias, 1) == (outputs,):
                return Linear((node, add), x, add.outputs[0], weight, bias, inputs, outputs)
    return Linear((node,), x, node.outputs[0], weight, None, inputs, outputs)
