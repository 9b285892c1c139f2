"""The shipped network's shape through the real exporter: sizes of files and the cost that the tree promises."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from export import counts
from export.fold import fold
from export.graphs import build_graph, files_of
from ptsa_serve.task_tree import TaskTree
from training.network.model import ModelConfig, PTSAModel

TREE = TaskTree.parse(
    "segmentation,depth,normals,saliency / segmentation,depth,normals,saliency / "
    "segmentation,saliency | depth,normals / segmentation | saliency | depth | normals"
)

FROZEN = dict.fromkeys(("merge", "norms", "tables", "patch"), "frozen")


def nano(tree: TaskTree) -> PTSAModel:
    """Matrices as a checkpoint holds them: rounded to fp16."""
    torch.manual_seed(0)
    model = PTSAModel(ModelConfig("swin_nano", tree, options=FROZEN))
    for name, parameter in model.named_parameters():
        if ".up." in name:
            torch.nn.init.normal_(parameter, std=0.01)
        if parameter.ndim >= 2:
            parameter.data = parameter.data.half().float()
    return model.eval()


@pytest.mark.slow
@torch.no_grad()
def test_nano_fits_the_package(images: Callable[[int, tuple[int, int]], np.ndarray]) -> None:
    graph = build_graph(fold(nano(TREE)), (448, 448))
    files = {file.path: len(file.data) for file in files_of([graph])}
    assert files["model-448x448.onnx"] < 200_000
    # 24 MiB, less five graphs, a sample and a page.
    assert files["weights.safetensors"] < 22_000_000
    found = graph.folded.network(torch.from_numpy(images(1, (448, 448))))
    assert {name: values.shape[1:3] for name, values in found.items()} == dict.fromkeys(found, (448, 448))


def test_one_graph_costs_about_half_of_four() -> None:
    size = (224, 224)
    together = counts.multiply_adds(fold(nano(TREE)).network, size)
    apart = sum(counts.multiply_adds(fold(nano(TREE), tasks=[task]).network, size) for task in TREE.tasks)
    # Swin-T with this tree's counts, 1-1-2-4, and MTLoRA's decoders: 38.3 against 73.4.
    assert 0.4 < together / apart < 0.65
