"""Attention masks of shifted windows as region numbers: 1 byte a token instead of 4 bytes a pair of tokens.

A mask (..., T, T) of a window with T tokens is 0 between tokens of one region of the image and -100 between regions,
so it says nothing but which tokens belong together. Letters: W windows, T tokens of a window.
"""

import numpy as np
import onnx_ir as ir

__all__ = ["CompactMasks", "regions"]

# timm's masked_fill value (Swin, official code): after the softmax its weight is 0 in fp32.
MASKED = -100.0


class CompactMasks(ir.passes.InPlacePass):
    """Requires opset 13 or newer. Ensures that no mask is left and that every mask's users get the same values.

    For each float initializer (..., T, T) of 0 and -100 that groups tokens into regions:
    1. region numbers, uint8 (..., T), take its place;
    2. Cast to int32 (TensorRT casts uint8 and does nothing else with it), Unsqueeze to a row and a column;
    3. Equal, then Where with 0 and -100, gives the mask.
    Runtimes fold all of it into a constant when they load the graph.
    """

    def requires(self, model: ir.Model) -> None:
        if model.opset_imports.get("", 0) < 13:
            raise ir.passes.PreconditionError("Unsqueeze with axes as an input needs opset 13")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        masks = [(value, ids) for value in model.graph.initializers.values() if (ids := _regions_of(value)) is not None]
        if masks:
            constants = _constants(model.graph)
            for value, ids in masks:
                _replace(model.graph, value, ids, constants)
        return ir.passes.PassResult(model, modified=bool(masks))

    def ensures(self, model: ir.Model) -> None:
        left = [value.name for value in model.graph.initializers.values() if _regions_of(value) is not None]
        if left:
            raise ir.passes.PostconditionError(f"masks are left: {left}")


def regions(mask: np.ndarray) -> np.ndarray | None:
    """Region numbers, uint8 (..., T), for a mask (..., T, T) of 0 and -100; None where it is no such mask.

    A region's number is that of its first token. The result is checked: it gives exactly `mask` again.
    """
    if mask.ndim < 3 or mask.shape[-1] != mask.shape[-2] or not 1 < mask.shape[-1] <= 256:
        return None
    ids = np.argmax(mask == 0, axis=-1).astype(np.uint8)
    again = np.where(ids[..., :, None] == ids[..., None, :], np.float32(0), np.float32(MASKED))
    return ids if np.array_equal(again, mask) else None


def _regions_of(value: ir.Value) -> np.ndarray | None:
    tensor = value.const_value
    if tensor is None or tensor.dtype != ir.DataType.FLOAT:
        return None
    return regions(tensor.numpy())


def _constants(graph: ir.Graph) -> dict[str, ir.Value]:
    """The small tensors that all masks share."""
    arrays = {
        "mask_row": np.array([-2], np.int64),
        "mask_column": np.array([-1], np.int64),
        "mask_same": np.array(0, np.float32),
        "mask_other": np.array(MASKED, np.float32),
    }
    return {name: _initializer(graph, name, array) for name, array in arrays.items()}


def _replace(graph: ir.Graph, value: ir.Value, ids: np.ndarray, constants: dict[str, ir.Value]) -> None:
    compact = _initializer(graph, f"{value.name}.regions", ids)
    cast = ir.node("Cast", [compact], attributes={"to": ir.DataType.INT32})
    row = ir.node("Unsqueeze", [cast.outputs[0], constants["mask_row"]])
    column = ir.node("Unsqueeze", [cast.outputs[0], constants["mask_column"]])
    equal = ir.node("Equal", [row.outputs[0], column.outputs[0]])
    where = ir.node("Where", [equal.outputs[0], constants["mask_same"], constants["mask_other"]])
    # Before every user: at the head of the graph.
    graph.insert_before(graph[0], [cast, row, column, equal, where])
    value.replace_all_uses_with(where.outputs[0])
    assert value.name is not None
    del graph.initializers[value.name]


def _initializer(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    value = ir.Value(
        name=name,
        shape=ir.Shape(array.shape),
        type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
        const_value=ir.tensor(array, name=name),
    )
    graph.register_initializer(value)
    return value
