"""The whole way from a checkpoint to an artifact that the runtime opens, with graphs exported beforehand."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import export.compile
from export.compile import CompileConfig, compile_artifact
from export.errors import ExportError, ParityError
from export.graphs import Graph
from export.verify import verify_artifact
from ptsa_serve.artifact import Artifact
from ptsa_serve.engines import EngineOptions, load_engine
from ptsa_serve.predictor import Predictor
from training.network.checkpoint import load_checkpoint, save_checkpoint, sha256
from training.network.model import PTSAModel

SIZES = ((64, 96), (96, 64))


@pytest.fixture(autouse=True)
def ready_graphs(graphs: list[Graph], monkeypatch: pytest.MonkeyPatch) -> dict[tuple[int, int], Graph]:
    """Instead of exporting anew for each test: the graphs of this very checkpoint."""
    by_size = {graph.size: graph for graph in graphs}

    def build_graph(model: PTSAModel, size: tuple[int, int]) -> Graph:
        return by_size[size]

    monkeypatch.setattr(export.compile, "build_graph", build_graph)
    return by_size


@pytest.fixture
def config(checkpoint: Path, photo: Path, tmp_path: Path) -> CompileConfig:
    return CompileConfig(
        checkpoint=checkpoint,
        out=tmp_path / "out" / "model",
        sample=photo,
        photos=[photo],
        sizes=SIZES,
        name="tiny",
        metrics=[{"data": "nyu", "split": "val", "figures": {"depth": 1.0}}],
        notes=["Rooms only."],
        licence="for research",
    )


def test_artifact_says_what_it_is(config: CompileConfig, checkpoint: Path) -> None:
    lines: list[str] = []
    manifest = compile_artifact(config, report=lines.append).manifest
    assert (manifest.name, manifest.version, manifest.input.sizes) == ("tiny", "1", SIZES)
    assert [task.name for task in manifest.tasks] == ["segmentation", "depth", "normals", "saliency"]
    assert manifest.tree.model_dump() == load_checkpoint(checkpoint).config.tree.to_json() | {
        "tasks": ("segmentation", "depth", "normals", "saliency"),
        "stages": manifest.tree.stages,
    }
    assert set(manifest.counts.multiply_adds) == {"64x96", "96x64"}
    assert manifest.counts.deployed > manifest.counts.frozen > 0
    assert manifest.provenance["checkpoint_sha256"] == sha256(checkpoint)
    assert manifest.provenance["training"]["steps"] == 3
    assert manifest.notes == ("Rooms only.",)
    assert manifest.provenance["licence"] == "for research"
    assert manifest.metrics[0]["figures"] == {"depth": 1.0}
    assert all(entry["worst"] <= entry["tolerance"] for entry in manifest.parity.values())
    assert [record.path for record in manifest.files] == [
        "model-64x96.onnx",
        "model-96x64.onnx",
        "weights.safetensors",
        "sample.jpg",
        "sample.npz",
    ]
    assert any(line.startswith("depth at 96 x 64, folded against engine") for line in lines)


def test_the_runtime_opens_it_and_reproduces_its_sample(config: CompileConfig) -> None:
    compile_artifact(config)
    artifact = Artifact.open(config.out)
    predictor = Predictor(artifact, load_engine("onnxruntime", artifact, EngineOptions(threads=1)))
    errors = predictor.verify()
    assert errors["segmentation"] == 0
    assert max(errors.values()) < 0.01
    assert predictor.predict(config.sample.read_bytes()).maps["depth"].shape == (90, 120)


def test_an_older_artifact_is_replaced(config: CompileConfig) -> None:
    compile_artifact(config)
    (config.out / "left over").write_text("from before")
    compile_artifact(config)
    assert sorted(path.name for path in config.out.iterdir()) == [
        "manifest.json",
        "model-64x96.onnx",
        "model-96x64.onnx",
        "sample.jpg",
        "sample.npz",
        "weights.safetensors",
    ]


def swap_outputs(graph: ir.Graph) -> None:
    depth, saliency = (value for value in graph.outputs if value.name in ("depth", "saliency"))
    depth.name, saliency.name = "saliency", "depth"


def change_an_operator(graph: ir.Graph) -> None:
    next(node for node in graph if node.op_type == "Softmax").attributes["axis"] = ir.AttrInt64("axis", -2)


def cross_two_weights(graph: ir.Graph) -> None:
    one, other = (graph.initializers[f"slots.layers/3/blocks/0/mlp/fc1.{branch}.weight.T"] for branch in range(2))
    for node in graph:
        for index, value in enumerate(node.inputs):
            if value is one or value is other:
                node.replace_input_with(index, other if value is one else one)


@pytest.mark.parametrize("damage", [swap_outputs, change_an_operator, cross_two_weights])
@pytest.mark.parametrize("exists", [False, True])
def test_a_damaged_graph_is_refused_and_nothing_changes(
    config: CompileConfig,
    ready_graphs: dict[tuple[int, int], Graph],
    damage: Callable[[ir.Graph], None],
    exists: bool,
) -> None:
    if exists:
        config.out.mkdir(parents=True)
        (config.out / "manifest.json").write_text("older")
    before = sorted(config.out.parent.parent.rglob("*"))
    damage(ready_graphs[96, 64].model.graph)
    with pytest.raises(ParityError, match="at 96 x 64, folded against engine"):
        compile_artifact(config)
    assert sorted(config.out.parent.parent.rglob("*")) == before


def test_a_folder_of_something_else_is_not_replaced(config: CompileConfig) -> None:
    config.out.mkdir(parents=True)
    (config.out / "thesis.tex").write_text("years of work")
    with pytest.raises(ExportError, match="is no artifact"):
        compile_artifact(config)
    assert (config.out / "thesis.tex").read_text() == "years of work"


def test_verify_passes_its_own_checkpoint_and_refuses_another(
    config: CompileConfig, checkpoint: Path, photo: Path, tmp_path: Path
) -> None:
    compile_artifact(config)
    assert verify_artifact(checkpoint, config.out, [photo])["depth"]["worst"] <= 1e-4
    other = load_checkpoint(checkpoint)
    other.get_parameter("decoders.depth.head.bias").data += 0.01
    save_checkpoint(other, tmp_path / "other.safetensors", info={})
    with pytest.raises(ParityError, match=r"depth at .* folded against engine") as caught:
        verify_artifact(tmp_path / "other.safetensors", config.out, [photo])
    assert "normals" not in str(caught.value)


def test_checkpoint_keeps_the_weights_that_the_artifact_folds(config: CompileConfig, checkpoint: Path) -> None:
    """The chain by hand for one layer: checkpoint file -> artifact file -> what the engine gets."""
    artifact = compile_artifact(config)
    state = load_checkpoint(checkpoint).state_dict()
    slot = "layers/3/blocks/0/attn/qkv"
    up, down = (state[f"method.changes.{slot}.{factor}.1"] for factor in ("up", "down"))
    expected = state["backbone.trunk.layers.3.blocks.0.attn.qkv.weight"] + 4.0 * up @ down
    name = f"slots.{slot}.1.weight.T"
    found = artifact.weights(artifact.variants.all[0]).make([name])[name]
    np.testing.assert_allclose(found, expected.numpy().T, atol=1e-6)
