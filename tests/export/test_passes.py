import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from timm.models.swin_transformer import SwinTransformerBlock

from export.passes import ChannelsLast, CompactMasks, Externalise, NameWeights, StripMetadata
from export.passes.compact_masks import regions


def constant(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
    graph.register_initializer(value)
    return value


def adding(array: np.ndarray) -> ir.Model:
    """A graph: y = x + `array`, under the name "constant"."""
    x = ir.Value(name="x", shape=ir.Shape(array.shape), type=ir.TensorType(ir.DataType.FLOAT))
    y = ir.Value(name="y", shape=ir.Shape(array.shape), type=ir.TensorType(ir.DataType.FLOAT))
    graph = ir.Graph([x], [y], nodes=[], opset_imports={"": 20}, name="adding")
    graph.append(ir.Node("", "Add", [x, constant(graph, "constant", array)], outputs=[y], name="add"))
    return ir.Model(graph, ir_version=10)


def run(model: ir.Model, x: np.ndarray) -> np.ndarray:
    data = ir.to_proto(model).SerializeToString()
    return onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


def shift_mask(height: int, width: int) -> np.ndarray:
    """timm's own mask (W, 49, 49) for a map of height x width."""
    block = SwinTransformerBlock(8, (height, width), num_heads=1, window_size=7, shift_size=3, always_partition=True)
    mask = block.get_attn_mask()
    assert mask is not None
    return mask.numpy()


def class_map(planes: tuple[int, int], size: tuple[int, int]) -> ir.Model:
    """A graph as the exporter makes it: logits of 5 classes scaled up to `size`, then the best class, uint8."""
    x = ir.Value(name="x", shape=ir.Shape(["N", 5, *planes]), type=ir.TensorType(ir.DataType.FLOAT))
    y = ir.Value(name="y", shape=ir.Shape(["N", *size]), type=ir.TensorType(ir.DataType.UINT8))
    graph = ir.Graph([x], [y], nodes=[], opset_imports={"": 20}, name="class_map")
    shape = ir.node("Shape", [x], attributes={"start": 0, "end": 2})
    sizes = ir.node("Concat", [shape.outputs[0], constant(graph, "size", np.array(size))], attributes={"axis": 0})
    scaled = ir.node("Resize", [x, None, None, sizes.outputs[0]], attributes={"mode": "linear"})
    scaled.outputs[0].shape = ir.Shape(["N", 5, *size])
    best = ir.node("ArgMax", [scaled.outputs[0]], attributes={"axis": 1, "keepdims": 0})
    cast = ir.Node("", "Cast", [best.outputs[0]], [ir.AttrInt64("to", ir.DataType.UINT8)], outputs=[y])
    graph.extend([shape, sizes, scaled, best, cast])
    return ir.Model(graph, ir_version=10)


@pytest.mark.parametrize("size", [(24, 32), (18, 40)])
def test_channels_last_is_exact(size: tuple[int, int]) -> None:
    model = class_map((6, 8), size)
    x = np.random.default_rng(0).normal(size=(3, 5, 6, 8)).astype(np.float32)
    before = run(model, x)
    assert ChannelsLast()(model).modified
    assert [node.op_type for node in model.graph][-4:] == ["Transpose", "Resize", "ArgMax", "Cast"]
    assert before.shape == (3, *size)
    assert np.array_equal(run(model, x), before)


def test_scaling_of_planes_whose_sides_are_not_known_stays() -> None:
    model = class_map((6, 8), (24, 32))
    model.graph.inputs[0].shape = ir.Shape(["N", 5, "h", "w"])
    assert not ChannelsLast()(model).modified


def test_a_sum_of_scaled_planes_with_tokens_is_done_on_tokens() -> None:
    x = ir.Value(name="x", shape=ir.Shape(["N", 6, 8, 5]), type=ir.TensorType(ir.DataType.FLOAT))
    y = ir.Value(name="y", type=ir.TensorType(ir.DataType.FLOAT))
    graph = ir.Graph([x], [y], nodes=[], opset_imports={"": 20}, name="pyramid")
    planes = ir.node("Transpose", [x], attributes={"perm": [0, 3, 1, 2]})
    small = ir.node("MaxPool", [planes.outputs[0]], attributes={"kernel_shape": [2, 2], "strides": [2, 2]})
    scales = constant(graph, "scales", np.float32([1, 1, 2, 2]))
    large = ir.node("Resize", [small.outputs[0], None, scales], attributes={"mode": "linear"})
    total = ir.node("Add", [planes.outputs[0], large.outputs[0]])
    graph.extend([planes, small, large, total, ir.Node("", "Relu", [total.outputs[0]], outputs=[y])])
    model = ir.Model(graph, ir_version=10)
    tokens = np.random.default_rng(0).normal(size=(2, 6, 8, 5)).astype(np.float32)
    before = run(model, tokens)
    assert ChannelsLast()(model).modified
    assert [node.op_type for node in model.graph][2:] == ["Transpose", "Resize", "Add", "Transpose", "Relu"]
    assert np.allclose(run(model, tokens), before, atol=1e-6)


@pytest.mark.parametrize("grid", [(14, 14), (12, 16), (16, 24), (7, 7), (96, 128)])
def test_compact_masks_are_exact(grid: tuple[int, int]) -> None:
    mask = shift_mask(*grid)
    model = adding(mask)
    x = np.random.default_rng(0).normal(size=mask.shape).astype(np.float32)
    assert CompactMasks()(model).modified
    assert np.array_equal(run(model, x), x + mask)


def test_compact_masks_take_a_byte_a_token() -> None:
    model = adding(shift_mask(96, 128))
    before = len(ir.to_proto(model).SerializeToString())
    CompactMasks()(model)
    assert len(ir.to_proto(model).SerializeToString()) < before / 150


def test_masks_with_more_axes_keep_them() -> None:
    mask = shift_mask(14, 14)[None, :, None]
    assert regions(mask).shape == (1, 4, 1, 49)  # pyright: ignore[reportOptionalMemberAccess]


def test_what_is_no_mask_stays() -> None:
    no_groups = np.zeros((2, 3, 3), np.float32)
    no_groups[:, 0, 1] = -100  # 0 is apart from 1, but 1 is not apart from 0
    for array in (np.ones((2, 5, 5), np.float32), np.full((5, 5), -100, np.float32), no_groups):
        model = adding(array)
        assert not CompactMasks()(model).modified
        assert "constant" in model.graph.initializers


def test_weights_get_the_names_of_their_parameters() -> None:
    rng = np.random.default_rng(0)
    weight, other = rng.normal(size=(2, 3)).astype(np.float32), rng.normal(size=(3,)).astype(np.float32)
    for array, expected in ((weight, "layer.weight"), (np.ascontiguousarray(weight.T), "layer.weight.T")):
        model = adding(array)
        naming = NameWeights({"layer.weight": weight, "layer.bias": other})
        naming(model)
        assert naming.found == (expected,)
        assert list(model.graph.initializers) == [expected]
        assert np.array_equal(run(model, np.zeros_like(array)), array)


def test_names_may_be_exchanged() -> None:
    one, two = np.float32([1, 2]), np.float32([3, 4])
    model = adding(one)
    constant(model.graph, "b", two)
    model.graph.initializers["constant"].name = "a"
    naming = NameWeights({"b": one, "a": two})
    naming(model)
    values = {name: value.const_value.numpy().tolist() for name, value in model.graph.initializers.items()}  # pyright: ignore
    assert values == {"a": [3, 4], "b": [1, 2]}


def test_a_large_constant_that_is_no_parameter_is_refused() -> None:
    with pytest.raises(ir.passes.PostconditionError, match=r"constant .* none of the network's parameters"):
        NameWeights({"weight": np.float32([1])})(adding(np.ones((30, 30), np.float32)))


def test_equal_weights_must_be_one_before_naming() -> None:
    model = adding(np.float32([1, 2]))
    constant(model.graph, "again", np.float32([1, 2]))
    with pytest.raises(ir.passes.PreconditionError, match="remove duplicates"):
        NameWeights({})(model)


def test_stripping_keeps_values_and_leaves_no_path() -> None:
    model = adding(np.float32([1, 2]))
    (node,) = model.graph
    node.doc_string = "File /home/somebody/model.py, line 3"
    node.metadata_props["stack"] = "/home/somebody"
    StripMetadata()(model)
    assert b"somebody" not in ir.to_proto(model).SerializeToString()
    assert run(model, np.float32([0, 0])).tolist() == [1, 2]
    assert [value.name for value in (*model.graph.inputs, *model.graph.outputs)] == ["x", "y"]


def test_external_weights_need_a_place_of_their_size() -> None:
    for layout in ({}, {"constant": (0, 4)}):
        with pytest.raises(ir.passes.PreconditionError, match="no place of constant's size"):
            Externalise(("constant",), layout, "weights.data")(adding(np.float32([1, 2])))
    with pytest.raises(ir.passes.PreconditionError, match="no weight missing"):
        Externalise(("missing",), {"missing": (0, 8)}, "weights.data")(adding(np.float32([1, 2])))


def test_external_weights_leave_the_file() -> None:
    model = adding(np.zeros(1000, np.float32))
    Externalise(("constant",), {"constant": (64, 4000)}, "weights.data")(model)
    proto = ir.to_proto(model)
    assert len(proto.SerializeToString()) < 400
    (tensor,) = proto.graph.initializer
    assert {entry.key: entry.value for entry in tensor.external_data} == {
        "location": "weights.data",
        "offset": "64",
        "length": "4000",
    }
