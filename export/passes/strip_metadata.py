"""Drop what only a person debugging the exporter reads: stack traces, source names, shapes of values in between."""

import onnx_ir as ir
from onnx_ir.passes.common import ClearMetadataAndDocStringPass

__all__ = ["StripMetadata"]


class StripMetadata(ir.passes.InPlacePass):
    """Requires named inputs and outputs. Ensures that inputs, outputs and initializers keep their names.

    1. No metadata or doc string is left: the exporter writes source names and this machine's paths into them.
    2. Values in between get short names and no recorded shape (every runtime infers shapes when it loads a graph), nor
       do initializers, whose tensors have one.
    3. Nodes have no names, which nothing refers to.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        ClearMetadataAndDocStringPass()(model)
        graph = model.graph
        kept = (*graph.inputs, *graph.outputs, *graph.initializers.values())
        names = {value.name for value in kept}
        short = (name for name in map(_base36, range(10**9)) if name not in names)
        for value in _values(graph):
            value.metadata_props.clear()
            value.doc_string = None
        for node in graph:
            node.name = None
            for value in node.outputs:
                if not value.is_graph_output():
                    value.name, value.shape, value.type = next(short), None, None
        for value in graph.initializers.values():
            value.shape, value.type = None, None
        return ir.passes.PassResult(model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        described = (model, model.graph, *model.graph, *_values(model.graph))
        if any(thing.doc_string or thing.metadata_props for thing in described):
            raise ir.passes.PostconditionError("metadata or doc strings are left")
        names = [value.name for value in _values(model.graph)]
        if len(set(names)) != len(names):
            raise ir.passes.PostconditionError("two values have one name")


def _values(graph: ir.Graph) -> list[ir.Value]:
    """Every value of the graph once."""
    return [
        *graph.inputs,
        *graph.initializers.values(),
        *(value for node in graph for value in node.outputs),
    ]


def _base36(number: int) -> str:
    digits = ""
    while True:
        number, digit = divmod(number, 36)
        digits = "0123456789abcdefghijklmnopqrstuvwxyz"[digit] + digits
        if not number:
            return "v" + digits
