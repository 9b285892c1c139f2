"""A backbone that is no Swin, through fold, exporter and engine: nothing of theirs knows one by name."""

from collections.abc import Callable, Iterator

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch

from export import counts
from export.fold import fold
from export.graphs import Graph, build_graph
from ptsa_serve.task_tree import TaskTree
from training.backbones.pvt import PVTS
from training.methods import METHODS
from training.network.heads import finish
from training.network.model import ModelConfig, PTSAModel

TASKS = ("depth", "saliency")
BRANCHED = TaskTree.parse("depth,saliency / depth,saliency / depth,saliency / depth | saliency")
SIZE = (64, 96)
WIDTHS, RATIOS, REDUCTIONS = (8, 8, 12, 16), (8, 8, 4, 4), (8, 4, 2, 1)

Images = Callable[[int, tuple[int, int]], np.ndarray]


@pytest.fixture(scope="module", autouse=True)
def tiny_pvt() -> Iterator[None]:
    PVTS["pvt_export_test"] = {"depths": (1, 1, 1, 1), "embed_dims": WIDTHS, "num_heads": (1, 2, 2, 4)}
    yield
    del PVTS["pvt_export_test"]


def random_model(tree: TaskTree, method: str = "ptsa") -> PTSAModel:
    """Values that matter everywhere: with zeros, a missing bias or a crossed branch goes unseen."""
    torch.manual_seed(0)
    model = PTSAModel(ModelConfig("pvt_export_test", tree, method, width=8))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
        for name, buffer in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.uniform_(0.5, 2.0)
    return model.eval()


@pytest.fixture(scope="module")
def graph(tiny_pvt: None) -> Graph:
    return build_graph(fold(random_model(BRANCHED)), SIZE)


@pytest.mark.parametrize("method", [name for name, spec in METHODS.items() if not spec.windows])
@torch.no_grad()
def test_folding_is_exact(method: str, images: Images) -> None:
    model = random_model(BRANCHED, method).double()
    batch = torch.from_numpy(images(2, SIZE))
    raw = model(batch.permute(0, 3, 1, 2))
    for name, values in fold(model).network(batch).items():
        expected = finish(model.tasks[name], raw[name], SIZE)
        assert (values - expected).abs().max() < 1e-9 * expected.abs().max(), name


@torch.no_grad()
def test_the_engine_gives_the_maps_of_torch(graph: Graph, images: Images) -> None:
    session = onnxruntime.InferenceSession(
        ir.to_proto(graph.model).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    for photos in (1, 3):
        batch = images(photos, SIZE)
        expected = graph.folded.network(torch.from_numpy(batch))
        for output, values in zip(session.get_outputs(), session.run(None, {"image": batch}), strict=True):
            np.testing.assert_allclose(values, expected[output.name], atol=5e-5, rtol=5e-5)


def test_the_graph_holds_what_branches_share_once(graph: Graph) -> None:
    found = [name.removeprefix("slots.stages/3/").removesuffix(".T") for name in graph.weights if "stages/3" in name]
    assert {"blocks/0/mlp/fc1.0.weight", "blocks/0/mlp/fc1.1.weight", "blocks/0/mlp/dwconv.0.weight"} <= {*found}
    assert "blocks/0/mlp/dwconv.1.weight" not in found
    operators = [node.op_type for node in graph.model.graph]
    assert operators.count("Softmax") == operators.count("Gelu") == 3 + 2


def test_deployed_is_the_backbone_and_the_decoders() -> None:
    model = random_model(TaskTree.shared(TASKS))
    backbone = sum(parameter.numel() for parameter in model.backbone.parameters())
    decoders = sum(parameter.numel() for parameter in model.decoders.parameters())
    norms = sum(module.num_features for module in model.modules() if hasattr(module, "running_mean"))
    assert counts.deployed(fold(model).network) == backbone + decoders - norms


def test_multiply_adds_are_those_of_the_layers() -> None:
    """A network a task has the backbone twice, but for what both have in front of the first adapted layer."""
    one, two = (
        counts.multiply_adds(fold(random_model(tree)).network, SIZE)
        for tree in (TaskTree.shared(TASKS), TaskTree.independent(TASKS))
    )
    tokens = [SIZE[0] * SIZE[1] // (4 * 2**stage) ** 2 for stage in range(4)]
    expected = 0
    for stage, (n, c, ratio, reduction) in enumerate(zip(tokens, WIDTHS, RATIOS, REDUCTIONS, strict=True)):
        fewer = n // reduction**2
        smaller = 0 if reduction == 1 or stage == 0 else n * c * c
        attention = 2 * n * c * c + 2 * fewer * c * c + 2 * n * fewer * c
        merging = n * 9 * WIDTHS[stage - 1] * c if stage else 0
        expected += merging + smaller + attention + 2 * n * ratio * c * c + 9 * n * ratio * c
    assert two - one == expected
