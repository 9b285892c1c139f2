"""The shipped model's graphs as OpenVINO gets them: the same maps, by operators that it has quick kernels for."""

import weakref
from collections import Counter
from typing import Any

import numpy as np
import pytest

from ptsa_serve.artifact import Artifact, default_artifact
from ptsa_serve.engines import EngineOptions
from ptsa_serve.engines.openvino import OpenVinoEngine
from ptsa_serve.engines.openvino_graph import suit
from ptsa_serve.graphs import Graph
from ptsa_serve.variants import Precision, Variant

ov = pytest.importorskip("openvino", reason="openvino is not installed: pip install 'ptsa-serve[openvino]'")


@pytest.fixture(scope="module")
def artifact() -> Artifact:
    return Artifact.open(default_artifact())


def first_graph(artifact: Artifact, precision: Precision) -> tuple[Variant, Graph]:
    form = artifact.variants.form(precision)
    variant = next(variant for variant in artifact.variants.all if variant.form == form)
    return variant, artifact.graph(variant, variant.tasks)


def whole(artifact: Artifact, precision: Precision) -> Any:
    """The graph as the runtime reads it, its weights within."""
    variant, graph = first_graph(artifact, precision)
    arrays = artifact.weights(variant).make(graph.weights)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ptsa_serve.engines.openvino.suit", lambda ov, model: None)
        engine = OpenVinoEngine(artifact, EngineOptions(threads=2, precision=precision))
        engine._weights = arrays
        model = engine._model(graph)
    weakref.finalize(model, arrays.clear)  # until then: the model reads these very arrays
    return model


def types(model: Any) -> Counter[str]:
    return Counter(node.get_type_name() for node in model.get_ops())


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_attention_and_norms_are_operators_with_kernels(artifact: Artifact, precision: Precision):
    model = whole(artifact, precision)
    before = types(model)
    suit(ov, model)
    after = types(model)
    assert after["ScaledDotProductAttention"] == before["Softmax"] > 0
    assert after["Softmax"] == 0
    norms = [node for node in model.get_ops() if node.get_type_name() == "MVN"]
    assert len(norms) == before["MVN"] > 0
    assert {len(node.get_input_shape(0)) for node in norms} == {3}
    assert not any(port.partial_shape.is_dynamic for port in [*model.inputs, *model.outputs])


def test_maps_are_those_of_the_graph_as_it_was(artifact: Artifact):
    photo = np.random.default_rng(0).integers(0, 256, (1, 192, 256, 3), dtype=np.uint8)
    suited, plain = whole(artifact, "fp32"), whole(artifact, "fp32")
    suit(ov, suited)
    maps = []
    for model in (plain, suited):
        compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        maps.append({port.any_name: array for port, array in compiled.infer_new_request({0: photo}).items()})
    assert (maps[0].pop("segmentation") != maps[1].pop("segmentation")).mean() < 1e-3
    for name, expected in maps[0].items():
        np.testing.assert_allclose(maps[1][name], expected, atol=1e-4)


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
