"""The shapes of values of a graph whose batch axis is dynamic, for one photo."""

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

__all__ = ["Shape", "photo_shapes"]

Shape = tuple[int, ...]


def photo_shapes(model: ir.Model) -> dict[ir.Value, Shape]:
    """The shape for one photo of each value that has whole rows of a photo on its first axis, photo after photo.

    Those are the values whose first axis is twice as long for two photos, and no other. A graph whose height and width
    are dynamic has none.
    """
    one, two = _shapes(model, 1), _shapes(model, 2)
    return {value: shape for value, shape in one.items() if shape and two.get(value) == (2 * shape[0], *shape[1:])}


def _shapes(model: ir.Model, photos: int) -> dict[ir.Value, Shape]:
    """Shapes of input and results of nodes, if they are known once the batch is `photos`; the model stays as it was."""
    (image,) = model.graph.inputs
    computed = [value for node in model.graph for value in node.outputs]
    before = {value: value.shape for value in (image, *computed)}
    for value in computed:
        value.shape = None
    if image.shape is not None:
        image.shape = ir.Shape([photos, *list(image.shape)[1:]])
    ShapeInferencePass()(model)
    found = {value: tuple(value.shape) for value in before if value.shape is not None}
    for value, shape in before.items():
        value.shape = shape
    return {
        value: tuple(axis for axis in shape if isinstance(axis, int))
        for value, shape in found.items()
        if all(isinstance(axis, int) for axis in shape)
    }
