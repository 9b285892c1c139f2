"""A folded network as an ONNX graph: any number of photos, of one height and width or of any multiples of 32.

torch's dynamo exporter at opset 20: GELU is one operator, and no If, Loop or ScatterND is left from the padding
arithmetic of the older exporter.
"""

import warnings

import onnx_ir as ir
import torch
from torch.export import Dim

from export.errors import EmitError
from export.fold import FoldedNetwork
from ptsa_serve.sizes import Size
from training.network.model import STRIDE

__all__ = ["INPUT", "OPSET", "emit"]

INPUT = "image"
OPSET = 20

# Operators that would say that a shape or a mask is computed at run time, and how.
FORBIDDEN = frozenset({"If", "Loop", "Scan", "ScatterND"})
# Where sides are known, no padding has to be computed.
FORBIDDEN_OF_FIXED = FORBIDDEN | {"Mod", "Range"}

# Of a graph for any size: sides of 9 and 10 tokens in the coarsest map, where every map has more than one window in
# either direction and no two sides are equal. What is 1 or equal, the exporter takes for a constant.
_EXAMPLE = (9 * STRIDE, 10 * STRIDE)


def emit(network: FoldedNetwork, size: Size | None) -> ir.Model:
    """The graph of `network` for photos of `size`, None = any: input `image` uint8 (N, H, W, 3), an output named for
    each task.

    Raises EmitError if the exporter made something else: it has been seen to fix a dynamic axis without a word.
    """
    # Two photos: with one, the exporter takes N = 1 for a constant.
    example = torch.zeros((2, *(size or _EXAMPLE), 3), dtype=torch.uint8)
    axes = {0: Dim("N")} if size else {0: Dim("N"), 1: STRIDE * Dim("h"), 2: STRIDE * Dim("w")}
    with warnings.catch_warnings():
        # Of torch's own tree utilities, which copy.deepcopy meets on the way.
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        program = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes={INPUT: axes},
            input_names=[INPUT],
            output_names=list(network.tasks),
            verbose=False,
        )
    assert program is not None
    _check(program.model, network, size)
    return program.model


def _check(model: ir.Model, network: FoldedNetwork, size: Size | None) -> None:
    wrong = []
    sides = size or (None, None)
    shapes = [(value.name, _shape(value)) for value in model.graph.inputs]
    if shapes != [(INPUT, (None, *sides, 3))]:
        wrong.append(f"inputs {shapes}")
    outputs = [(value.name, _shape(value)[:3]) for value in model.graph.outputs]
    if outputs != [(task, (None, *sides)) for task in network.tasks]:
        wrong.append(f"outputs {outputs}")
    if model.opset_imports.get("") != OPSET or len(model.opset_imports) != 1:
        wrong.append(f"operator sets {dict(model.opset_imports)}")
    forbidden = FORBIDDEN_OF_FIXED if size else FORBIDDEN
    if found := sorted(forbidden & {node.op_type for node in model.graph}):
        wrong.append(f"operators {found}")
    if wrong:
        raise EmitError(
            f"the ONNX exporter of torch {torch.__version__} made {'; '.join(wrong)} for photos of {size or 'any size'}"
            "; use the versions of constraints.txt"
        )


def _shape(value: ir.Value) -> tuple[int | None, ...]:
    """Sizes of a value's axes, None where dynamic."""
    return tuple(axis if isinstance(axis, int) else None for axis in value.shape or ())
