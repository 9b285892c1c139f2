"""Point the weights of a graph to the shared file of weights, so that the graph alone is small."""

from collections.abc import Mapping

import onnx_ir as ir

__all__ = ["Externalise"]


class Externalise(ir.passes.InPlacePass):
    """Requires a place for each named weight. Ensures that those weights, and no others, are external.

    layout: initializer name -> (offset, length) in the file `location`, as `ptsa_serve.artifact.external_layout` and
    `external_data` give them.
    """

    def __init__(self, names: tuple[str, ...], layout: Mapping[str, tuple[int, int]], location: str) -> None:
        self._names = names
        self._layout = layout
        self._location = location

    def requires(self, model: ir.Model) -> None:
        for name in self._names:
            value = model.graph.initializers.get(name)
            if value is None or value.const_value is None:
                raise ir.passes.PreconditionError(f"the graph has no weight {name}")
            if name not in self._layout or self._layout[name][1] != value.const_value.nbytes:
                raise ir.passes.PreconditionError(f"the file of weights has no place of {name}'s size")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        for name in self._names:
            value = model.graph.initializers[name]
            tensor = value.const_value
            assert tensor is not None
            offset, length = self._layout[name]
            value.const_value = ir.ExternalTensor(
                self._location, offset, length, tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=name
            )
        return ir.passes.PassResult(model, modified=bool(self._names))

    def ensures(self, model: ir.Model) -> None:
        initializers = model.graph.initializers.items()
        external = {name for name, value in initializers if isinstance(value.const_value, ir.ExternalTensor)}
        if external != set(self._names):
            raise ir.passes.PostconditionError(f"external, or not, are {sorted(external ^ set(self._names))[:3]}")
