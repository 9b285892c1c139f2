"""What the exporter, the passes and the file of weights make of a whole (tiny) network."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from safetensors import safe_open

from export.emit import FORBIDDEN, OPSET
from export.graphs import WEIGHTS, Graph, files_of
from ptsa_serve.artifact import Artifact, ArtifactFile, write_artifact
from ptsa_serve.engines import EngineOptions, load_engine
from ptsa_serve.manifest import Manifest

TOLERANCE = 5e-5

Images = Callable[[int, tuple[int, int]], np.ndarray]


@pytest.fixture
def artifact(graphs: list[Graph], tmp_path: Path) -> Artifact:
    """The graphs' files behind the least manifest that opens."""
    tasks = graphs[0].folded.network.tasks
    manifest = Manifest.model_validate(
        {
            "name": "tiny",
            "version": "1",
            "input": {"sizes": [graph.size for graph in graphs]},
            "tasks": [
                {k: getattr(task, k) for k in ("name", "kind", "channels", "unit", "classes", "colors")}
                for task in tasks.values()
            ],
            "tree": {"tasks": tuple(tasks), "stages": ()},
            "backbone": {"name": "tiny", "sha256": "0" * 64},
            "counts": {"frozen": 0, "trainable": 0, "deployed": 0, "multiply_adds": {}},
        }
    )
    return write_artifact(tmp_path / "artifact", manifest, files_of(graphs))


def test_graph_takes_photos_and_gives_maps_by_name(graphs: list[Graph]) -> None:
    for graph in graphs:
        assert graph.size is not None
        (image,) = graph.model.graph.inputs
        assert image.name == "image"
        assert image.dtype == ir.DataType.UINT8
        assert [str(axis) for axis in image.shape or ()][1:] == [*map(str, graph.size), "3"]
        assert not isinstance((image.shape or [0])[0], int)
        assert [value.name for value in graph.model.graph.outputs] == ["segmentation", "depth", "normals", "saliency"]


def test_graph_casts_before_anything_else(graphs: list[Graph]) -> None:
    # TensorRT refuses uint8 tensors everywhere else.
    for graph in graphs:
        (user,) = [use.node.op_type for use in graph.model.graph.inputs[0].uses() if use.node.op_type != "Shape"]
        assert user == "Cast"


def test_graph_has_one_operator_set_and_no_control_flow(graphs: list[Graph]) -> None:
    for graph in graphs:
        assert dict(graph.model.opset_imports) == {"": OPSET}
        operators = Counter(node.op_type for node in graph.model.graph)
        assert not FORBIDDEN & operators.keys()
        assert not graph.model.functions


def test_shared_stages_appear_once_in_the_graph(graphs: list[Graph]) -> None:
    # 2 + 1 + 1 blocks in the shared stages, 1 in each of the two branches of the last.
    for graph in graphs:
        operators = Counter(node.op_type for node in graph.model.graph)
        assert operators["Softmax"] == operators["Gelu"] == 2 + 1 + 1 + 2
    weights = [name.split(".") for name in graphs[0].weights if "/attn/qkv." in name and ".weight" in name]
    assert sorted((parts[1].split("/")[1], parts[2]) for parts in weights) == [
        ("0", "0"), ("0", "0"), ("1", "0"), ("2", "0"), ("3", "0"), ("3", "1"),
    ]  # fmt: skip


def test_weights_have_the_same_names_at_every_size(graphs: list[Graph]) -> None:
    first, second = graphs
    assert first.weights == second.weights
    for name in first.weights:
        one, other = (graph.model.graph.initializers[name].const_value for graph in graphs)
        assert one is not None
        assert other is not None
        assert np.array_equal(one.numpy(), other.numpy())


def test_graph_files_hold_no_weights(artifact: Artifact) -> None:
    for variant in artifact.variants.all:
        assert (artifact.folder / variant.path).stat().st_size < 150_000


def test_graph_files_name_no_path_of_this_machine(artifact: Artifact) -> None:
    here = str(Path(__file__).parents[2]).encode()
    for path in artifact.folder.iterdir():
        assert here not in path.read_bytes()
        assert torch.__file__.encode() not in path.read_bytes()


def test_recipe_makes_the_weights_of_the_graph(graphs: list[Graph], artifact: Artifact) -> None:
    weights = dict(graphs[0].folded.network.named_parameters(remove_duplicate=False))
    variant = artifact.variants.all[0]
    made = artifact.weights(variant).make(artifact.graph(variant).weights)
    assert set(made) == set(graphs[0].weights)
    for name, array in made.items():
        expected = weights[name.removesuffix(".T")].numpy()
        expected = expected.T if name.endswith(".T") else expected
        assert array.dtype == np.float32
        if name.removesuffix(".T") in graphs[0].folded.recipes:
            # NumPy and torch may add the few products of a rank in another order.
            np.testing.assert_allclose(array, expected, atol=1e-7, rtol=1e-6)
        else:
            assert np.array_equal(array, expected)


def test_frozen_weights_are_kept_once_and_in_half_precision(graphs: list[Graph], artifact: Artifact) -> None:
    with safe_open(artifact.folder / WEIGHTS, "numpy") as file:
        names = set(file.keys())
        assert file.get_tensor("layers.3.blocks.0.mlp.fc1.weight").dtype == np.float16
        assert file.get_tensor("layers.3.blocks.0.mlp.fc1.up.1").shape == (4 * 96, 3)
    assert not [name for name in names if name.startswith("slots.layers/3/") and name.endswith("fc1.1.weight")]


@torch.no_grad()
@pytest.mark.parametrize("count", [1, 2, 3])
def test_engine_gives_the_networks_maps_for_any_number_of_photos(
    graphs: list[Graph], artifact: Artifact, images: Images, count: int
) -> None:
    engine = load_engine("onnxruntime", artifact, EngineOptions(threads=1))
    for graph in graphs:
        assert graph.size is not None
        batch = images(count, graph.size)
        found = engine.run(batch)
        for name, expected in graph.folded.network(torch.from_numpy(batch)).items():
            assert found[name].dtype == expected.numpy().dtype
            np.testing.assert_allclose(found[name], expected.numpy(), atol=TOLERANCE)
    engine.close()


def test_unpacked_folder_runs_in_plain_onnxruntime(artifact: Artifact, images: Images, tmp_path: Path) -> None:
    artifact.write_external_data(tmp_path / "onnx")
    engine = load_engine("onnxruntime", artifact, EngineOptions(threads=1))
    for variant in artifact.variants.all:
        assert variant.size is not None
        batch = images(1, variant.size)
        path = tmp_path / "onnx" / variant.path
        plain = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        names = [output.name for output in plain.get_outputs()]
        for name, values in zip(names, plain.run(names, {"image": batch}), strict=True):
            np.testing.assert_allclose(values, engine.run(batch)[name], atol=TOLERANCE)
    engine.close()


def test_artifact_file_of_a_graph_says_what_it_is(graphs: list[Graph]) -> None:
    file = next(file for file in files_of(graphs) if file.path == "model-96x64.onnx")
    assert isinstance(file, ArtifactFile)
    assert file.attributes["height"] == 96
    assert file.attributes["width"] == 64
    assert file.attributes["tasks"] == ("segmentation", "depth", "normals", "saliency")
