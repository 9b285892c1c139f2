"""Graphs of lower precision: what becomes half or 8 bits, and how near the maps stay."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto

from export.graphs import Graph
from export.precision.files import with_weights
from export.precision.half import HALVES, half_name, to_half
from export.precision.int8 import layers, to_int8
from export.precision.quantize import attempts
from ptsa_serve.artifact import Artifact
from ptsa_serve.engines.openvino import _core
from ptsa_serve.tasks import TASKS

Exported = list[tuple[Graph, onnx.ModelProto]]


def run(model: onnx.ModelProto | Path, photos: np.ndarray) -> dict[str, np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    data = str(model) if isinstance(model, Path) else model.SerializeToString()
    session: Any = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return dict(zip(TASKS, session.run(list(TASKS), {"image": photos}), strict=True))


def types(model: onnx.ModelProto) -> dict[str, int]:
    """Element type of every value, as ONNX's own inference has it."""
    graph = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
    values = (*graph.input, *graph.output, *graph.value_info)
    return {v.name: v.type.tensor_type.elem_type for v in values} | {t.name: t.data_type for t in graph.initializer}


@pytest.fixture(scope="module", params=HALVES)
def half(request: pytest.FixtureRequest, exported: Exported) -> tuple[onnx.ModelProto, ir.DataType]:
    dtype = HALVES[request.param]
    model, renamed = to_half(exported[0][1], dtype)
    assert not renamed  # all weights were inside
    return ir.to_proto(model), dtype


def test_a_half_graph_is_a_valid_one_with_the_same_inputs_and_outputs(half, exported: Exported):
    model, _ = half
    onnx.checker.check_model(model, full_check=True)
    before = exported[0][1].graph
    for mine, other in ((model.graph.input, before.input), (model.graph.output, before.output)):
        assert [(v.name, v.type) for v in mine] == [(v.name, v.type) for v in other]


def test_products_are_halves_but_the_last_of_each_output_and_soft_max_is_not(half):
    model, dtype = half
    found, last = types(model), last_products(model)
    assert len(last) == len(TASKS)
    for node in model.graph.node:
        kind = found[node.output[0]]
        if node.op_type == "Softmax" or (node.op_type in {"MatMul", "Conv"} and node.output[0] in last):
            assert kind == TensorProto.FLOAT, node
        elif node.op_type == "MatMul":
            assert kind == dtype.value, node


def last_products(model: onnx.ModelProto) -> set[str]:
    """Of every output, the products that no other product follows."""
    makers = {name: node for node in model.graph.node for name in node.output}
    found, left = set(), [output.name for output in model.graph.output]
    while left:
        node = makers.get(left.pop())
        if node is not None and node.op_type in {"MatMul", "Conv"}:
            found.add(node.output[0])
        elif node is not None:
            left += [node.input[0]]
    return found


def test_maps_in_fp16_are_those_of_fp32_to_its_rounding(exported: Exported, images: Callable[..., np.ndarray]):
    graph, proto = exported[0]
    model, _ = to_half(proto, HALVES["fp16"])
    photos = images(2, graph.size)
    found, expected = run(ir.to_proto(model), photos), run(proto, photos)
    for name, values in found.items():
        assert values.dtype == expected[name].dtype
        if name == "segmentation":
            assert np.mean(values != expected[name]) < 0.02
        else:
            assert np.abs(values - expected[name]).mean() < 3e-3 * np.abs(expected[name]).mean()


def test_external_weights_become_halves_by_name_and_what_stays_fp32_keeps_its_own(exported: Exported):
    graph, proto = exported[0]
    copy = onnx.ModelProto.FromString(proto.SerializeToString())
    for tensor in copy.graph.initializer:
        if tensor.name in graph.weights:
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value="nowhere.data")
    model, renamed = to_half(copy, HALVES["fp16"])
    assert renamed
    assert set(renamed.values()) <= set(graph.weights)
    for new, old in renamed.items():
        assert new == half_name(old, HALVES["fp16"]) == f"{old}.float16"
        assert model.graph.initializers[new].dtype == ir.DataType.FLOAT16
    heads = [name for name in graph.weights if ".head.weight" in name]
    assert heads
    assert not set(heads) & set(renamed.values())
    assert set(heads) <= set(model.graph.initializers)


@pytest.fixture(scope="module")
def tiny(tiny_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first graph of the tiny artifact, its weights inside and its nodes named."""
    artifact = Artifact.open(tiny_artifact)
    path = tmp_path_factory.mktemp("int8") / "model.onnx"
    onnx.save(with_weights(artifact, artifact.variants.all[0]), path)
    return path


PHOTOS = np.random.default_rng(5).integers(0, 256, (6, 48, 64, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def int8(tiny: Path) -> onnx.ModelProto:
    chosen = [node for names in layers(onnx.load(tiny)).values() for node in names]
    to_int8(tiny, tiny.with_name("int8.onnx"), chosen, list(PHOTOS[:4]), tiny.with_name("ranges.json"))
    return onnx.load(tiny.with_name("int8.onnx"))


def test_layers_are_what_has_weights(tiny: Path):
    assert set(layers(onnx.load(tiny))) == {"stem", "trunk", *(f"head.{task}" for task in TASKS)}


@pytest.mark.parametrize(
    ("weight", "layer"),
    [
        ("slots.layers/2/blocks/3/mlp/fc1.0.weight.T", "slots.layers.2.blocks.mlp.fc1"),
        ("stages.2.branches.1.0.attn.qkv.weight.T", "stages.2.branches.attn.qkv"),
        ("decoders.depth.lateral.3.weight", "decoders.depth.lateral.3"),
    ],
)
def test_blocks_and_branches_of_a_stage_are_one_layer(weight: str, layer: str):
    node = onnx.helper.make_node("MatMul", ["x", weight], ["y"], name="n")
    graph = onnx.helper.make_graph([node], "g", [], [], [onnx.numpy_helper.from_array(np.zeros((2, 2)), weight)])
    assert layers(onnx.helper.make_model(graph)) == {layer: ["n"]}


def test_products_of_activations_stacked_factors_and_last_convolutions_stay():
    tensors = {"stacked": (3, 2, 2), "first": (2, 2, 1, 1), "last": (2, 2, 1, 1)}
    nodes = [
        onnx.helper.make_node("MatMul", ["x", "stacked"], ["a"], name="n0"),
        onnx.helper.make_node("MatMul", ["x", "a"], ["b"], name="n1"),
        onnx.helper.make_node("Conv", ["b", "first"], ["c"], name="n2"),
        onnx.helper.make_node("Relu", ["c"], ["d"], name="n3"),
        onnx.helper.make_node("Conv", ["d", "last"], ["e"], name="n4"),
    ]
    inside = [onnx.numpy_helper.from_array(np.zeros(shape, np.float32), name) for name, shape in tensors.items()]
    assert layers(onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [], [], inside))) == {"first": ["n2"]}


def test_int8_is_symmetric_by_channel_and_without_integer_biases(int8: onnx.ModelProto):
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in int8.graph.initializer}
    pairs = [node for node in int8.graph.node if node.op_type in {"QuantizeLinear", "DequantizeLinear"}]
    assert pairs
    for node in pairs:
        assert tensors[node.input[2]].dtype == np.int8
        assert not tensors[node.input[2]].any()
    channels = [tensors[node.input[1]].size for node in pairs if node.input[0] in tensors]
    assert sorted(channels) == sorted([8, 16, 39, 1, 3, 1])  # stem, trunk, heads
    assert not any(array.dtype == np.int32 for array in tensors.values())


def test_maps_in_int8_are_near_those_of_fp32(int8: onnx.ModelProto, tiny: Path):
    found, expected = run(int8, PHOTOS[4:]), run(tiny, PHOTOS[4:])
    assert np.mean(found["segmentation"] != expected["segmentation"]) < 0.1
    for name in ("depth", "normals", "saliency"):
        assert np.abs(found[name] - expected[name]).mean() < 0.03


def test_openvino_reads_int8_as_onnxruntime_does(int8: onnx.ModelProto):
    pytest.importorskip("openvino", reason="pip install 'ptsa-serve[openvino]'")
    core = _core()
    config = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    maps = core.compile_model(core.read_model(int8.SerializeToString()), "CPU", config)(PHOTOS[4:])
    expected = run(int8, PHOTOS[4:])
    for name in ("depth", "normals", "saliency"):
        assert np.abs(maps[name] - expected[name]).mean() < 5e-3


@pytest.mark.parametrize("count", [1, 2, 7, 56])
def test_ever_more_layers_are_left_out_and_never_most(count: int):
    found = list(attempts(count))
    assert found[0] == 0
    assert found == sorted(set(found))
    assert found[-1] <= count / 2
