"""The shipped model's graphs as OpenVINO gets them: the same maps, by operators that it has quick kernels for."""

import weakref
from collections import Counter
from typing import Any

import numpy as np
import pytest

from ptsa_serve.artifact import Artifact, default_artifact
from ptsa_serve.engines import EngineOptions
from ptsa_serve.engines.openvino import OpenVinoEngine, _core
from ptsa_serve.engines.openvino_graph import suit
from ptsa_serve.variants import Precision

ov = pytest.importorskip("openvino", reason="openvino is not installed: pip install 'ptsa-serve[openvino]'")

EXACT = {"INFERENCE_PRECISION_HINT": "f32"}  # bf16 otherwise, where the CPU has it


@pytest.fixture(scope="module")
def artifact() -> Artifact:
    return Artifact.open(default_artifact())


def whole(artifact: Artifact, precision: Precision) -> Any:
    """The graph as the runtime reads it, its weights within."""
    variant = artifact.variants.first(artifact.variants.form(precision))
    graph = artifact.graph(variant, variant.tasks)
    arrays = artifact.weights(variant).make(graph.weights)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ptsa_serve.engines.openvino.suit", lambda *_: None)
        engine = OpenVinoEngine(artifact, EngineOptions(threads=2, precision=precision))
        engine._weights = arrays
        model = engine._model(graph)
    weakref.finalize(model, arrays.clear)  # until then: the model reads these very arrays
    return model


def types(model: Any) -> Counter[str]:
    return Counter(node.get_type_name() for node in model.get_ops())


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_attention_norms_and_scaling_are_operators_with_kernels(artifact: Artifact, precision: Precision):
    model = whole(artifact, precision)
    before = types(model)
    suit(ov, model, {}, {})
    after = types(model)
    assert after["Softmax"] == before["Softmax"] > 0
    assert {node.get_axis() for node in model.get_ops() if node.get_type_name() == "Softmax"} == {2}
    norms = [node for node in model.get_ops() if node.get_type_name() == "MVN"]
    assert len(norms) == before["MVN"] > 0
    assert {len(node.get_input_shape(0)) for node in norms} == {3}
    scaled = [node.get_input_shape(0) for node in model.get_ops() if node.get_type_name() == "Interpolate"]
    assert Counter(len(shape) for shape in scaled if shape[-3] < 8) == {3: 3}  # depth, normals, saliency
    assert not any(port.partial_shape.is_dynamic for port in [*model.inputs, *model.outputs])


def test_maps_are_those_of_the_graph_as_it_was(artifact: Artifact):
    photo = np.random.default_rng(0).integers(0, 256, (1, 192, 256, 3), dtype=np.uint8)
    suited, plain = whole(artifact, "fp32"), whole(artifact, "fp32")
    suit(ov, suited, {}, {})
    maps = []
    for model in (plain, suited):
        compiled = _core().compile_model(model, "CPU", EXACT)
        maps.append({port.any_name: array for port, array in compiled.infer_new_request({0: photo}).items()})
    assert (maps[0].pop("segmentation") != maps[1].pop("segmentation")).mean() < 1e-3
    for name, expected in maps[0].items():
        np.testing.assert_allclose(maps[1][name], expected, atol=1e-4)


@pytest.mark.parametrize("mask", [(1, 3, 1, 5, 5), (2, 1, 4, 5, 5), (3, 1, 5, 5)])
def test_masks_of_windows_in_stacked_groups_keep_their_places(mask: tuple[int, ...]):
    """Two groups of three windows, four heads, five tokens: as low-rank branches have them."""
    ops, values = ov.opset13, np.random.default_rng(0)
    image = ops.parameter([-1, 2, 2, 3], np.uint8, "image")
    level = ops.reduce_mean(ops.convert(image, "f32"), np.array([0, 1, 2, 3]))
    queries, keys, heads = (ops.multiply(level, values.normal(size=(6, 4, 5, 8)).astype(np.float32)) for _ in range(3))
    scores = ops.add(ops.matmul(queries, keys, False, True), values.normal(size=(1, 4, 5, 5)).astype(np.float32))
    stacked = ops.reshape(scores, np.array([2, 3, 4, 5, 5]), False)
    masked = ops.add(stacked, values.normal(size=mask).astype(np.float32))
    chosen = ops.softmax(ops.reshape(masked, np.array([6, 4, 5, 5]), False), -1)
    model = ov.Model([ops.matmul(chosen, heads, False, False)], [image])
    photo = np.ones((1, 2, 2, 3), np.uint8)
    expected = _core().compile_model(model, "CPU", EXACT)(photo)[0]
    suit(ov, model, {}, {})
    assert [node.get_axis() for node in model.get_ops() if node.get_type_name() == "Softmax"] == [2]
    np.testing.assert_allclose(_core().compile_model(model, "CPU", EXACT)(photo)[0], expected, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_map_does_not_depend_on_what_else_runs_or_is_asked_for(artifact: Artifact, precision: Precision):
    engine = OpenVinoEngine(artifact, EngineOptions(threads=2, precision=precision))
    photo = np.random.default_rng(0).integers(0, 256, (1, 192, 256, 3), dtype=np.uint8)
    alone = engine.run(photo)
    engine._graphs.get((engine._first, engine._tasks, False))  # nobody waits for it otherwise
    beside, one, twice = engine.run(photo, alone=False), engine.run(photo, ["depth"]), engine.run(photo.repeat(2, 0))
    for name, expected in alone.items():
        np.testing.assert_array_equal(beside[name], expected)
        np.testing.assert_array_equal(twice[name], expected.repeat(2, 0))
    np.testing.assert_array_equal(one["depth"], alone["depth"])
    engine.close()
