"""A graph in half precision, float16 or bfloat16, where that is safe: what lies between the first product and the last.

float32 stay: the way in (pixels to normalised planes), the last product of each output and what makes a map of it
(up-sampling, arg-max, exponential, unit length), soft-max, and what an operator takes in float32 alone. Layer norms
take and give halves; their statistics are float32 by `stash_type`, as the softmax inside an Attention is asked to be.
"""

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
from onnx.defs import OpSchema, SchemaError

__all__ = ["HALVES", "half_name", "to_half"]

HALVES: dict[str, ir.DataType] = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}

# What computes sums of products: between two of these, numbers may be halves.
_PRODUCTS = {"MatMul", "Gemm", "Conv", "Attention", "MultiHeadAttention"}
# A sum over a row of exponentials: the one place between products where halves lose more than they save.
_SAFE = {"Softmax", "Cast"}

_NAMES = {ir.DataType.FLOAT16: "float16", ir.DataType.BFLOAT16: "bfloat16"}
_NUMPY = {ir.DataType.FLOAT16: np.dtype(np.float16), ir.DataType.BFLOAT16: np.dtype(ml_dtypes.bfloat16)}


def half_name(name: str, half: ir.DataType) -> str:
    """The name of the half of a weight; its recipe is the weight's, with `float16` or `bfloat16` as dtype."""
    return f"{name}.{_NAMES[half]}"


def to_half(proto: onnx.ModelProto, half: ir.DataType) -> tuple[ir.Model, dict[str, str]]:
    """`proto`, its weights external or not, in precision `half`; inputs and outputs keep their types.

    Returns the model and, for each external weight that became a half, the name it had, by its new one. Their place in
    a file is the old one: who writes the model gives them another.
    """
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    nodes = list(model.graph)
    between = _behind_a_product(nodes) & _before_a_product(nodes)
    convert = _Conversion(model, half)
    for node in nodes:
        if node in between and node.op_type not in _SAFE and convert.allows(node):
            convert.halve(node)
        else:
            convert.keep(node)
    _drop_unused(model)
    return model, convert.renamed


class _Conversion:
    """The values that have been converted so far, each once."""

    def __init__(self, model: ir.Model, half: ir.DataType) -> None:
        self._model, self._half = model, half
        self._twins: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self.renamed: dict[str, str] = {}

    def allows(self, node: ir.Node) -> bool:
        """Whether the operator may give halves."""
        return all(self._fits(node, i, output=True) for i, value in enumerate(node.outputs) if _is_float(value))

    def halve(self, node: ir.Node) -> None:
        for index, value in enumerate(node.inputs):
            if value is not None and self._fits(node, index):
                node.replace_input_with(index, self._as(value, self._half, node))
            elif value is not None:
                node.replace_input_with(index, self._as(value, ir.DataType.FLOAT, node))
        for value in node.outputs:
            if _is_float(value):
                value.dtype = self._half
        if node.op_type == "Attention":
            node.attributes["softmax_precision"] = ir.AttrInt64("softmax_precision", ir.DataType.FLOAT.value)

    def keep(self, node: ir.Node) -> None:
        if node.op_type == "Cast":
            return
        for index, value in enumerate(node.inputs):
            if value is not None:
                node.replace_input_with(index, self._as(value, ir.DataType.FLOAT, node))

    def _as(self, value: ir.Value, dtype: ir.DataType, user: ir.Node) -> ir.Value:
        """`value` as `dtype`, if it is of the other of the two: a constant of that type, or a Cast before `user`."""
        if (value.dtype or ir.DataType.FLOAT) not in {ir.DataType.FLOAT, self._half} - {dtype}:
            return value
        if (value, dtype) not in self._twins:
            made = self._constant(value) if value.const_value is not None else self._cast(value, dtype, user)
            self._twins[value, dtype] = made
        return self._twins[value, dtype]

    def _constant(self, value: ir.Value) -> ir.Value:
        tensor, name = value.const_value, half_name(value.name or "", self._half)
        assert tensor is not None
        if isinstance(tensor, ir.ExternalTensor):
            shape = ir.Shape(tensor.shape.numpy())
            new = ir.ExternalTensor(tensor.location, tensor.offset, None, self._half, shape=shape, name=name)
            self.renamed[name] = value.name or ""
        else:
            new = ir.Tensor(tensor.numpy().astype(_NUMPY[self._half]), dtype=self._half, name=name)
        made = ir.Value(name=name, shape=value.shape, type=ir.TensorType(self._half), const_value=new)
        self._model.graph.register_initializer(made)
        return made

    def _cast(self, value: ir.Value, dtype: ir.DataType, user: ir.Node) -> ir.Value:
        cast = ir.node("Cast", [value], {"to": dtype.value})
        made = cast.outputs[0]
        made.name, made.shape, made.type = f"{value.name}.{dtype.name.lower()}", value.shape, ir.TensorType(dtype)
        self._model.graph.insert_before(user, cast)
        return made

    def _fits(self, node: ir.Node, index: int, *, output: bool = False) -> bool:
        """Whether the operator takes, or gives, halves there; operators that ONNX does not know are said to."""
        try:
            schema = onnx.defs.get_schema(node.op_type, self._model.opset_imports[node.domain], node.domain)
        except SchemaError:
            return True
        formal = schema.outputs if output else schema.inputs
        parameter = formal[min(index, len(formal) - 1)]
        assert index < len(formal) or parameter.option == OpSchema.FormalParameterOption.Variadic
        return f"tensor({_NAMES[self._half]})" in parameter.types


def _behind_a_product(nodes: list[ir.Node]) -> set[ir.Node]:
    """Products, and what depends on one through floats."""
    found: set[ir.Node] = set()
    for node in nodes:
        above = {value.producer() for value in node.inputs if value is not None and _is_float(value)}
        if node.op_type in _PRODUCTS or above & found:
            found.add(node)
    return found


def _before_a_product(nodes: list[ir.Node]) -> set[ir.Node]:
    """What a product depends on through floats; the last products are not among them."""
    found: set[ir.Node] = set()
    for node in reversed(nodes):
        users = {user for value in node.outputs if _is_float(value) for user in value.consumers()}
        if any(user in found or user.op_type in _PRODUCTS for user in users):
            found.add(node)
    return found


def _is_float(value: ir.Value) -> bool:
    """Whether it is float32, or of a type that nobody could infer: behind an operator that ONNX does not know."""
    return value.dtype in (None, ir.DataType.FLOAT)


def _drop_unused(model: ir.Model) -> None:
    for name, value in list(model.graph.initializers.items()):
        if not value.uses():
            del model.graph.initializers[name]
