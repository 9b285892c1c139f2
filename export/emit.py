"""A folded network as an ONNX graph: fixed height and width, any number of photos.

torch's dynamo exporter at opset 20: GELU is one operator, and no Mod, If, Loop or ScatterND is left from the padding
arithmetic of the older exporter.
"""

import warnings

import onnx_ir as ir
import torch

from export.errors import EmitError
from export.fold import FoldedNetwork

__all__ = ["INPUT", "OPSET", "emit"]

INPUT = "image"
OPSET = 20

# Operators that would say that a shape or a mask is computed at run time.
FORBIDDEN = frozenset({"If", "Loop", "Mod", "Scan", "ScatterND"})


def emit(network: FoldedNetwork) -> ir.Model:
    """The graph of `network`: input `image` uint8 (N, H, W, 3), an output named for each task.

    Raises EmitError if the exporter made something else: it has been seen to fix a dynamic axis without a word.
    """
    # Two photos: with one, the exporter takes N = 1 for a constant.
    example = torch.zeros((2, *network.size, 3), dtype=torch.uint8)
    with warnings.catch_warnings():
        # Of torch's own tree utilities, which copy.deepcopy meets on the way.
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        program = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes={INPUT: {0: torch.export.Dim("N")}},
            input_names=[INPUT],
            output_names=list(network.tasks),
            verbose=False,
        )
    assert program is not None
    _check(program.model, network)
    return program.model


def _check(model: ir.Model, network: FoldedNetwork) -> None:
    wrong = []
    shapes = [(value.name, _shape(value)) for value in model.graph.inputs]
    if shapes != [(INPUT, (None, *network.size, 3))]:
        wrong.append(f"inputs {shapes}")
    outputs = [(value.name, _shape(value)[:3]) for value in model.graph.outputs]
    if outputs != [(task, (None, *network.size)) for task in network.tasks]:
        wrong.append(f"outputs {outputs}")
    if model.opset_imports.get("") != OPSET or len(model.opset_imports) != 1:
        wrong.append(f"operator sets {dict(model.opset_imports)}")
    if found := sorted(FORBIDDEN & {node.op_type for node in model.graph}):
        wrong.append(f"operators {found}")
    if wrong:
        raise EmitError(
            f"the ONNX exporter of torch {torch.__version__} made {'; '.join(wrong)} for photos of {network.size}; "
            "use the versions of constraints.txt"
        )


def _shape(value: ir.Value) -> tuple[int | None, ...]:
    """Sizes of a value's axes, None where dynamic."""
    return tuple(axis if isinstance(axis, int) else None for axis in value.shape or ())
