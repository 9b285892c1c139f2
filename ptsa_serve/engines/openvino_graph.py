"""A graph as OpenVINO runs it fastest: the same maps, operators that it has quick kernels for.

For a photo at a time: with N = 1 known, shapes of a graph of a fixed size are known throughout. The runtime (2026.4)
then plans its memory ahead and works out no shape while it runs, a tenth of the time on two CPUs.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

__all__ = ["suit"]

_TO_PLANES, _TO_PIXELS = np.array([0, 3, 1, 2]), np.array([0, 2, 3, 1])

# Kernels for images with their channels together compute so many at once, or more.
_VECTOR = 8


class _Scores(NamedTuple):
    """product: of queries and keys. added: to what, as the product goes on through reshapes, which bias is added."""

    product: Any
    added: list[tuple[Any, Any]]


def suit(ov: Any, model: Any, weights: Mapping[str, np.ndarray], exchanged: dict[str, np.ndarray]) -> None:
    """Rewrite `model`, an `openvino.Model` of images (N, H, W, 3), in place: N becomes 1.

    weights: the arrays that constants of the model are, by their names. exchanged: those of them that it reads with the
    last two axes exchanged; what is missing is added. Models share both, which must live as long as they do.
    """
    ops = ov.opset13
    images = model.inputs[0]
    images.get_node().set_partial_shape(ov.PartialShape([1, *list(images.partial_shape)[1:]]))
    model.validate_nodes_and_infer_types()
    _scale_planes(ops, model)
    _scale_few_planes(ops, model)
    _normalise_rows(ops, model)
    _attend(ov, model, weights, exchanged)
    model.validate_nodes_and_infer_types()


def _scale_planes(ops: Any, model: Any) -> None:
    """Let planes, not pixels, be scaled, and the best be chosen among planes.

    There is no fast kernel for Interpolate over the middle axes, nor for TopK over the last: scaling class maps and
    choosing among them took a third of the whole model, between planes it takes a twentieth.
    """
    for node in model.get_ordered_ops():
        if scales := _middle_scales(node):
            planes = ops.transpose(node.input_value(0), _TO_PLANES)
            scaled = _scaled(ops, node, planes, np.array(scales, np.float32), "scales", [2, 3])
            for user in list(node.output(0).get_target_inputs()):
                if not (_chosen_among_planes(ops, user.get_node(), scaled) or _added_to_planes(ops, user, scaled)):
                    user.replace_source_output(ops.transpose(scaled, _TO_PIXELS).output(0))


def _middle_scales(node: Any) -> list[float]:
    """The factors of the axes H and W of an Interpolate of (N, H, W, C); empty for other operators."""
    if node.get_type_name() != "Interpolate" or node.input_value(1).get_node().get_type_name() != "Constant":
        return []
    scales = [float(scale) for scale in node.input_value(1).get_node().data]
    return scales[1:3] if len(scales) == 4 and scales[0] == scales[3] == 1 != scales[1] else []


def _chosen_among_planes(ops: Any, top: Any, planes: Any) -> bool:
    """Let what reads the indices of `top`, a TopK of one over the last axis, read those of one over `planes`; whether
    it is such an operator.
    """
    if top.get_type_name() != "TopK" or (how := top.get_attributes())["axis"] != 3:
        return False
    best = ops.topk(planes, 1, 1, how["mode"], how["sort"], how["index_element_type"])
    indices = ops.transpose(best.output(1), _TO_PIXELS)
    for reader in list(top.output(1).get_target_inputs()):
        reader.replace_source_output(indices.output(0))
    return True


def _added_to_planes(ops: Any, user: Any, planes: Any) -> bool:
    """Let what is added where `user` is be added to `planes`; whether it is added there.

    Left to itself the runtime turns them back for the sum and again for the convolution behind it, or neither.
    """
    total = user.get_node()
    if total.get_type_name() != "Add":
        return False
    other = total.input_value(1 - user.get_index())
    if _axes(other) != 4:
        return False
    _replace(total, ops.transpose(ops.add(ops.transpose(other, _TO_PLANES), planes), _TO_PIXELS))
    return True


def _scale_few_planes(ops: Any, model: Any) -> None:
    """Let maps of few channels be scaled as (C, H, W). As (1, C, H, W) they would keep the order of the convolution
    that they come from, whose channels lie together: its kernels take a channel's time for eight.
    """
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Interpolate" or node.get_attributes()["shape_calculation_mode"] != "sizes":
            continue
        maps = node.input_value(0)
        shape = list(maps.get_partial_shape())
        if len(shape) == 4 and shape[1].is_static and shape[1].get_length() < _VECTOR:
            size = ops.slice(node.input_value(1), np.array([2]), np.array([4]), np.array([1]))
            scaled = _scaled(ops, node, ops.squeeze(maps, np.array([0])), size, "sizes", [1, 2])
            _replace(node, ops.unsqueeze(scaled, np.array([0])))


def _scaled(ops: Any, node: Any, maps: Any, by: Any, kind: str, axes: list[int]) -> Any:
    """`maps` scaled over `axes` in the way of `node`, an Interpolate. by: factors or sizes, as `kind` says."""
    how = node.get_attributes()
    places, nearest = how["coordinate_transformation_mode"], how["nearest_mode"]
    return ops.interpolate(
        maps, by, how["mode"], kind, coordinate_transformation_mode=places, nearest_mode=nearest, axes=np.array(axes)
    )


def _normalise_rows(ops: Any, model: Any) -> None:
    """Let layer norms over (1, H, W, C) be over (1, H W, C): those of four axes are five operators each."""
    for node in model.get_ordered_ops():
        if node.get_type_name() == "MVN" and _axes(node.input_value(0)) == 4:
            how, pixels = node.get_attributes(), node.input_value(0)
            channels = pixels.get_partial_shape()[3].get_length()
            rows = ops.reshape(pixels, np.array([1, -1, channels]), special_zero=False)
            normed = ops.mvn(rows, np.array([2]), how["normalize_variance"], how["eps"], how["eps_mode"].lower())
            _replace(node, ops.reshape(normed, ops.shape_of(pixels), special_zero=False))


def _attend(ov: Any, model: Any, weights: Mapping[str, np.ndarray], exchanged: dict[str, np.ndarray]) -> None:
    """Let scores be those of keys for queries, and the bias and the mask be added to them at once.

    A soft-max over the first of their two axes takes half the time: over the last, the 49 tokens of a window are three
    vectors of 16 and one number, on which its kernel spends as much as on them.
    """
    ops = ov.opset13
    for node in model.get_ordered_ops():
        if node.get_type_name() == "Softmax" and (scores := _scores(node.input_value(0))):
            readers = [reader.get_node() for reader in node.output(0).get_target_inputs()]
            keys = _keys(scores.product)
            if keys is not None and len(readers) == 1 and readers[0].get_type_name() == "MatMul":
                added = [_of_windows(ops, bias, to) for to, bias in scores.added]
                biases = [_exchanged(ov, bias, weights, exchanged) for bias in added]
                bias = biases[0] if len(biases) == 1 else ops.add(*biases)
                by_key = ops.add(ops.matmul(keys, scores.product.input_value(0), False, True), bias)
                _replace(readers[0], ops.matmul(ops.softmax(by_key, 2), readers[0].input_value(1), True, False))


def _scores(value: Any) -> _Scores | None:
    """What a soft-max over `value` is of, if that is attention with one bias or two."""
    added = []
    while (node := value.get_node()).get_type_name() in ("Add", "Reshape"):
        value = node.input_value(0)
        if node.get_type_name() == "Add":
            added.append((value, node.input_value(1)))
    if node.get_type_name() != "MatMul" or len(added) not in (1, 2) or _axes(node.output(0)) != 4:
        return None
    return _Scores(node, added) if all(_axes(bias) >= 4 for _, bias in added) else None


def _keys(product: Any) -> Any:
    """The keys (windows, heads, tokens, channels) of queries @ keys transposed, None for another product."""
    keys = product.input_value(1)
    if product.get_attributes()["transpose_b"]:
        return keys
    return keys.get_node().input_value(0) if keys.get_node().get_type_name() == "Transpose" else None


def _of_windows(ops: Any, bias: Any, scores: Any) -> Any:
    """The bias that is added to `scores`, as it would be added to scores (windows, heads, tokens, tokens).

    Scores of five axes are those of windows within groups that are stacked: (groups, windows of one, heads, ...).
    """
    if _axes(scores) == 4:
        return bias
    axes = [axis.get_length() for axis in list(bias.get_partial_shape())[-3:]]
    stacked = ops.slice(ops.shape_of(scores), np.array([0]), np.array([2]), np.array([1]))
    whole = ops.broadcast(bias, ops.concat([stacked, np.array(axes)], 0))
    return ops.reshape(whole, np.array([-1, *axes]), special_zero=False).output(0)


def _exchanged(ov: Any, bias: Any, weights: Mapping[str, np.ndarray], known: dict[str, np.ndarray]) -> Any:
    """`bias` of four axes with the last two exchanged."""
    name = bias.get_node().get_friendly_name()
    if name not in weights:
        return ov.opset13.transpose(bias, np.array([0, 1, 3, 2]))
    if name not in known:
        known[name] = np.ascontiguousarray(weights[name].swapaxes(2, 3))
    return ov.op.Constant(ov.Tensor(known[name], shared_memory=True), shared_memory=True)


def _axes(value: Any) -> int:
    return value.get_partial_shape().rank.get_length()


def _replace(node: Any, by: Any) -> None:
    for reader in list(node.output(0).get_target_inputs()):
        reader.replace_source_output(by.output(0))
