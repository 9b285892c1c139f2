"""Give every weight of the graph the name of the network's parameter that it is: the same in the graphs of all sizes.

The exporter names what it folded (a transposed weight, say) by a running number, which differs from size to size.
Contents tell which parameter it was.
"""

import hashlib
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

__all__ = ["TRANSPOSED", "NameWeights"]

# Behind the name of a parameter that the graph holds transposed.
TRANSPOSED = ".T"

# Constants that are no parameters (scalars, shapes, image statistics) stay in the graph; all are smaller than this.
SMALL_BYTES = 1024


class NameWeights(ir.passes.InPlacePass):
    """Requires that no two initializers are equal. Ensures that every float initializer is a parameter or small.

    After a run `found` has the names that were given. parameters: float32 arrays by name; where two are equal, the
    first in alphabetical order stands for both.
    """

    def __init__(self, parameters: Mapping[str, np.ndarray]) -> None:
        self._names: dict[str, str] = {}
        for name in sorted(parameters):
            array = parameters[name]
            self._names.setdefault(_digest(array), name)
            if array.ndim == 2:
                self._names.setdefault(_digest(array.T), name + TRANSPOSED)
        self.found: tuple[str, ...] = ()

    def requires(self, model: ir.Model) -> None:
        digests = [_digest(tensor.numpy()) for _, tensor in _floats(model)]
        if len(set(digests)) != len(digests):
            raise ir.passes.PreconditionError("two initializers are equal; remove duplicates first")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        found = {}
        for value, tensor in _floats(model):
            name = self._names.get(_digest(tensor.numpy()))
            if name is not None and len(tensor.shape) > 0:
                found[name] = value
        # First all leave, then all return under their new names: a new name may be the old one of another.
        for value in found.values():
            del graph.initializers[value.name or ""]
        for name, value in sorted(found.items()):
            value.name = name
            graph.register_initializer(value)
        self.found = tuple(sorted(found))
        return ir.passes.PassResult(model, modified=bool(found))

    def ensures(self, model: ir.Model) -> None:
        for value, tensor in _floats(model):
            if value.name not in self.found and tensor.nbytes > SMALL_BYTES:
                raise ir.passes.PostconditionError(
                    f"initializer {value.name} {tensor.shape} is none of the network's parameters; "
                    "make what the exporter computed a parameter, or leave it to be computed"
                )


def _floats(model: ir.Model) -> list[tuple[ir.Value, ir.TensorProtocol]]:
    return [
        (value, value.const_value)
        for value in model.graph.initializers.values()
        if value.const_value is not None and value.const_value.dtype == ir.DataType.FLOAT
    ]


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(repr(array.shape).encode() + np.ascontiguousarray(array).tobytes()).hexdigest()
