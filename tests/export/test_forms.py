"""Branches folded or low rank, sizes fixed or dynamic: every form gives the maps of the model that was trained."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from export import counts
from export.branches import Measured, choose
from export.compile import CompileConfig, compile_artifact
from export.emit import FORBIDDEN
from export.fold import fold
from export.graphs import Graph, build_graph, files_of
from export.parity import TOLERANCES
from export.verify import sizes_to_check
from ptsa_serve.difference import difference
from ptsa_serve.engines import EngineOptions, load_engine
from ptsa_serve.sizes import AnySize, Sizes
from ptsa_serve.task_tree import TaskTree
from ptsa_serve.variants import Branches
from ptsa_serve.weights import WeightsFile
from training.backbones.pvt import PVTS
from training.backbones.swin import SWINS
from training.network.checkpoint import save_checkpoint
from training.network.heads import finish
from training.network.model import ModelConfig, PTSAModel

TASKS = ("segmentation", "depth", "normals", "saliency")
SIZE = (64, 96)
# Sides that windows of 7 divide and that they do not; shorter than a shift; portrait and landscape.
SIZES = [(224, 224), (320, 96), (64, 160), (32, 256), (288, 352)]


@pytest.fixture(scope="module", autouse=True)
def tiny_backbones() -> Iterator[None]:
    # Two blocks where windows are shifted: in the first stage, and in the last, where branches are.
    SWINS["swin_forms_test"] = {"embed_dim": 8, "depths": (2, 1, 1, 2), "num_heads": (1, 1, 2, 2)}
    PVTS["pvt_forms_test"] = {"depths": (1, 1, 1, 1), "embed_dims": (8, 8, 12, 16), "num_heads": (1, 2, 2, 4)}
    SWINS["swin_small_test"] = {**SWINS["swin_forms_test"], "depths": (1, 1, 1, 1)}
    yield
    del SWINS["swin_forms_test"], SWINS["swin_small_test"], PVTS["pvt_forms_test"]


def random_model(backbone: str, groups: tuple[int, ...], method: str = "ptsa", tasks: int = 4) -> PTSAModel:
    """Values that matter everywhere: with zeros, a missing bias or a crossed branch goes unseen."""
    torch.manual_seed(0)
    decoder = "hrnet" if method == "mtlora" else "pyramid"
    tree = TaskTree.of_counts(TASKS[:tasks], groups)
    model = PTSAModel(ModelConfig(backbone, tree, method, {"rank": 2}, decoder, width=8))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
        for name, buffer in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.uniform_(0.5, 2.0)
    return model.eval()


def trained_maps(model: PTSAModel, batch: Tensor) -> dict[str, Tensor]:
    raw = model(batch.permute(0, 3, 1, 2))
    size = (batch.shape[1], batch.shape[2])
    return {name: finish(model.tasks[name], planes, size) for name, planes in raw.items()}


def photos(count: int, size: tuple[int, int]) -> Tensor:
    pixels = np.random.default_rng(count).integers(0, 256, (count, *size, 3), dtype=np.uint8)
    return torch.from_numpy(pixels)


@pytest.mark.parametrize(
    ("method", "groups"),
    [("ptsa", (1, 1, 2, 4)), ("ptsa", (1, 2, 2, 4)), ("lora_per_task", (4, 4, 4, 4)), ("mtlora", (1, 1, 1, 1))],
)
@pytest.mark.parametrize("backbone", ["swin_forms_test", "pvt_forms_test"])
@settings(max_examples=3, deadline=None)
@given(rows=st.integers(1, 4), columns=st.integers(1, 4), count=st.integers(1, 3))
@torch.no_grad()
def test_every_form_computes_what_was_trained(
    backbone: str, method: str, groups: tuple[int, ...], rows: int, columns: int, count: int
) -> None:
    model = random_model(backbone, groups, method).double()
    batch = photos(count, (32 * rows, 32 * columns))
    expected = trained_maps(model, batch)
    for branches in ("folded", "low_rank"):
        for name, values in fold(model, branches=branches).network(batch).items():
            difference = (values.double() - expected[name].double()).abs().max()
            assert difference < 1e-9 * max(1.0, float(expected[name].abs().max())), (branches, name)


def test_low_rank_has_a_frozen_layer_once_and_factors_with_an_axis_of_groups() -> None:
    model = random_model("swin_forms_test", (1, 1, 2, 4))
    slots = fold(model, branches="low_rank").network.slots
    held = {role: tuple(tensor.shape) for role, tensor in slots["layers/3/blocks/1/mlp/fc1"].named_parameters()}
    assert held == {"weight": (256, 64), "bias": (256,), "down": (4, 64, 2), "up": (4, 2, 256)}
    # Where there is one group, nothing is gained by keeping factors apart.
    assert {name for name, _ in slots["layers/1/blocks/0/mlp/fc1"].named_parameters()} == {"0.weight", "0.bias"}


def test_low_rank_of_one_group_everywhere_is_the_folded_network() -> None:
    model = random_model("swin_forms_test", (1, 1, 1, 1))
    folded, low_rank = (fold(model, branches=branches).network for branches in ("folded", "low_rank"))
    assert low_rank.grouped == {}
    assert counts.deployed(folded) == counts.deployed(low_rank)


def test_groups_whose_layers_have_nothing_in_common_are_folded_one_by_one() -> None:
    """Copies of the whole backbone a task: no frozen weight is under them."""
    torch.manual_seed(0)
    tree = TaskTree.independent(TASKS[:2])
    model = PTSAModel(ModelConfig("swin_forms_test", tree, "single_task", width=8))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    network = fold(model.eval(), branches="low_rank").network
    assert network.grouped == {}
    batch = photos(2, SIZE)
    with torch.no_grad():
        for name, values in network(batch).items():
            torch.testing.assert_close(values, trained_maps(model, batch)[name], atol=5e-5, rtol=0)


@pytest.fixture(scope="module")
def both(tiny_backbones: None) -> list[Graph]:
    """Both forms of a model with two branches in its last stage."""
    model = random_model("swin_small_test", (1, 1, 1, 2), tasks=2)
    return [build_graph(fold(model, branches=branches), SIZE) for branches in ("folded", "low_rank")]


def run(graph: Graph, batch: Tensor) -> dict[str, Any]:
    session = onnxruntime.InferenceSession(
        ir.to_proto(graph.model).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"image": batch.numpy()}), strict=True))


@torch.no_grad()
def test_both_forms_give_the_same_in_the_engine(both: list[Graph]) -> None:
    batch = photos(3, SIZE)
    for graph in both:
        expected, found = graph.folded.network(batch), run(graph, batch)
        for name, task in graph.folded.network.tasks.items():
            assert difference(task.kind, found[name], expected[name].numpy()).worst <= TOLERANCES[task.kind], name


def test_low_rank_runs_the_branches_side_by_side(both: list[Graph]) -> None:
    softmax = [Counter(node.op_type for node in graph.model.graph)["Softmax"] for graph in both]
    assert softmax == [3 + 2, 3 + 1]


def test_one_file_of_weights_makes_the_tensors_of_both_forms(both: list[Graph], tmp_path: Path) -> None:
    file = next(file for file in files_of(both) if file.role == "weights")
    (tmp_path / "weights").write_bytes(file.data)
    weights = WeightsFile.open(tmp_path / "weights")
    for graph in both:
        made = weights.make(graph.weights)
        for name in graph.weights:
            tensor = graph.model.graph.initializers[name].const_value
            assert tensor is not None
            np.testing.assert_allclose(made[name], tensor.numpy(), atol=1e-6, rtol=1e-6)
    separately = [next(f for f in files_of([graph]) if f.role == "weights") for graph in both]
    assert len(file.data) < 1.2 * max(len(alone.data) for alone in separately)


def test_files_say_which_form_they_are(both: list[Graph]) -> None:
    found = {file.path: file.attributes.get("branches") for file in files_of(both) if file.role == "graph"}
    assert found == {"model-64x96.onnx": "folded", "model-64x96-low_rank.onnx": "low_rank"}


def test_the_faster_form_is_kept_or_the_smaller_within_the_slowdown() -> None:
    measured: dict[Branches, Measured] = {"folded": Measured(300, 10.0, "e"), "low_rank": Measured(100, 10.8, "e")}
    assert choose(measured, 1.0) == "folded"
    assert choose(measured, 1.1) == "low_rank"
    assert choose({**measured, "low_rank": Measured(100, 9.0, "e")}, 1.0) == "low_rank"


def test_graphs_of_any_size_are_checked_at_five_shapes_and_a_small_one() -> None:
    fixed = Sizes(((384, 512),))
    assert sizes_to_check(fixed) == [(384, 512)]
    found = sizes_to_check(Sizes(((384, 512),), AnySize(32, 448 * 448)))
    assert found[0] == (384, 512)
    assert len({height / width for height, width in found[1:-1]}) == 5
    assert found[-1] == (64, 96)
    assert all(height * width <= 448 * 448 and height % 32 == width % 32 == 0 for height, width in found)


@pytest.mark.slow
@pytest.mark.parametrize("branches", ["folded", "low_rank"])
@pytest.mark.parametrize("backbone", ["swin_forms_test", "pvt_forms_test"])
@torch.no_grad()
def test_a_dynamic_graph_takes_any_height_width_and_number_of_photos(backbone: str, branches) -> None:
    model = random_model(backbone, (1, 1, 1, 2), tasks=2)
    graph = build_graph(fold(model, branches=branches), None)
    assert not FORBIDDEN & {node.op_type for node in graph.model.graph}
    for size in SIZES:
        for count in (1, 3, 8):
            batch = photos(count, size)
            expected, found = trained_maps(model, batch), run(graph, batch)
            for name, task in model.tasks.items():
                worst = difference(task.kind, found[name], expected[name].numpy()).worst
                assert worst <= TOLERANCES[task.kind], (name, size, count)


@pytest.mark.slow
def test_an_artifact_of_every_form_and_size_serves_each(photo: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_checkpoint(random_model("swin_forms_test", (1, 1, 1, 2), tasks=2), tmp_path / "model.safetensors", info={})
    artifact = compile_artifact(
        CompileConfig(
            tmp_path / "model.safetensors", tmp_path / "out", photo, [photo], sizes=(SIZE, None), branches="both"
        )
    )
    assert sorted(record.path for record in artifact.manifest.files if record.role == "graph") == [
        "model-64x96-low_rank.onnx", "model-64x96.onnx", "model-dynamic-low_rank.onnx", "model-dynamic.onnx",
    ]  # fmt: skip
    forms = artifact.manifest.counts.forms
    assert forms["low_rank"].parameters < forms["folded"].parameters
    assert forms["low_rank"].bytes < forms["folded"].bytes
    maps = []
    for branches in ("folded", "low_rank"):
        engine = load_engine("onnxruntime", artifact, EngineOptions(threads=1, branches=branches))
        for size in (SIZE, (160, 64)):
            maps.append(engine.run(photos(1, size).numpy(), ["depth"])["depth"])
            assert maps[-1].shape == (1, *size)
        engine.close()
    np.testing.assert_allclose(maps[0], maps[2], atol=1e-4)
    np.testing.assert_allclose(maps[1], maps[3], atol=1e-4)


@pytest.mark.slow
def test_auto_keeps_one_form_and_says_what_it_measured(photo: Path, tmp_path: Path) -> None:
    save_checkpoint(random_model("swin_forms_test", (1, 1, 1, 2), tasks=2), tmp_path / "model.safetensors", info={})
    config = CompileConfig(
        tmp_path / "model.safetensors",
        tmp_path / "out",
        photo,
        [photo],
        sizes=(SIZE,),
        branches="auto",
        max_slowdown=99,
    )
    artifact = compile_artifact(config)
    assert [str(form) for form in artifact.variants.forms] == ["fp32 low_rank"]
    measured = artifact.manifest.provenance["branches"]["measured"]
    assert set(measured) == {"folded", "low_rank"}
    assert all(one["milliseconds"] > 0 for one in measured.values())
