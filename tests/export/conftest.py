"""A Swin small enough for seconds, trained nowhere but random in every place that matters, and its graphs."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from PIL import Image

from export.fold import fold
from export.graphs import Graph, build_graph
from ptsa_serve.artifact import Artifact, ArtifactFile, write_artifact
from ptsa_serve.manifest import AnySizeRecord
from ptsa_serve.task_tree import TaskTree
from training.backbones.swin import SWINS
from training.network.checkpoint import load_checkpoint, save_checkpoint
from training.network.model import ModelConfig, PTSAModel

BRANCHED = TaskTree.parse(
    "segmentation,depth,normals,saliency / segmentation,depth,normals,saliency / "
    "segmentation,saliency | depth,normals / segmentation | depth | normals | saliency"
)
# Fewer branches where the exporter has to trace them: it takes a second a block.
SMALL = TaskTree.parse(
    "segmentation,depth,normals,saliency / segmentation,depth,normals,saliency / "
    "segmentation,depth,normals,saliency / segmentation,saliency | depth,normals"
)
FROZEN = dict.fromkeys(("merge", "norms", "tables", "patch"), "frozen")
SIZES = ((64, 96), (96, 64))


@pytest.fixture(scope="session", autouse=True)
def tiny_swin() -> Iterator[None]:
    # Two blocks in the first stage: the second one's windows are shifted.
    SWINS["swin_export_test"] = {"embed_dim": 12, "depths": (2, 1, 1, 1), "num_heads": (1, 2, 4, 8)}
    yield
    del SWINS["swin_export_test"]


def _random_model(tree: TaskTree, ranks: tuple[int, ...] = (2, 2, 3, 3), method: str = "ptsa") -> PTSAModel:
    """All parameters and running statistics random: with zeros, a missing bias or a crossed branch goes unseen."""
    torch.manual_seed(0)
    options = {"rank": list(ranks), **FROZEN} if method == "ptsa" else {}
    model = PTSAModel(ModelConfig("swin_export_test", tree, method, options, width=8))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
            elif ".up." in name or name.endswith("relative_position_bias_table"):
                parameter.normal_(std=0.05)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(std=0.1)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 2.0)
    return model.eval()


@pytest.fixture
def random_model() -> Callable[..., PTSAModel]:
    return _random_model


@pytest.fixture
def model() -> PTSAModel:
    return _random_model(BRANCHED)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, tiny_swin: None) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "model.safetensors"
    save_checkpoint(_random_model(SMALL), path, info={"steps": 3, "data": {"nyu": {"split": "train"}}})
    return path


@pytest.fixture(scope="session")
def exported(checkpoint: Path) -> list[tuple[Graph, onnx.ModelProto]]:
    """The graphs of SIZES with all weights inside. Exported once; the tests take copies."""
    folded = fold(load_checkpoint(checkpoint))
    graphs = [build_graph(folded, size) for size in SIZES]
    return [(graph, ir.to_proto(graph.model)) for graph in graphs]


@pytest.fixture
def graphs(exported: list[tuple[Graph, onnx.ModelProto]]) -> list[Graph]:
    """Copies that a test may change."""
    return [Graph(graph.size, graph.folded, ir.from_proto(proto), graph.weights) for graph, proto in exported]


@pytest.fixture(scope="session")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A JPEG of 120 x 90 with gradients, edges and noise."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[0:90, 0:120]
    pixels = np.stack([rows * 2.5, columns * 2.0, 255 - rows - columns], axis=-1)
    pixels[20:60, 30:70] = (200, 40, 60)
    pixels += rng.normal(0, 6, pixels.shape)
    path = tmp_path_factory.mktemp("photo") / "photo.jpg"
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=92)
    return path


@pytest.fixture(scope="session")
def any_size_artifact(tiny_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with one graph more, of any size: nothing in its nodes depends on height and width."""
    artifact = Artifact.open(tiny_artifact)
    model = onnx.load(tiny_artifact / "model-48x64.onnx", load_external_data=False)
    for value in (*model.graph.input, *model.graph.output):
        for axis, name in zip(value.type.tensor_type.shape.dim[1:3], ("H", "W"), strict=True):
            axis.dim_param = name
    files = [
        ArtifactFile("model.onnx", "graph", model.SerializeToString(), {"precision": "fp32", "branches": "folded"})
    ]
    for record in artifact.manifest.files:
        facts = record.model_dump(exclude_none=True, exclude={"path", "role", "bytes", "sha256"})
        files.append(ArtifactFile(record.path, record.role, (tiny_artifact / record.path).read_bytes(), facts))
    rule = AnySizeRecord(multiple=8, pixels=80 * 80)
    manifest = artifact.manifest
    manifest = manifest.model_copy(update={"input": manifest.input.model_copy(update={"any_size": rule})})
    out = tmp_path_factory.mktemp("artifact") / "any-size"
    write_artifact(out, manifest, files)
    return out


@pytest.fixture
def images() -> Callable[[int, tuple[int, int]], np.ndarray]:
    """Random photos uint8 (N, H, W, 3)."""
    return lambda n, size: np.random.default_rng(n).integers(0, 256, (n, *size, 3), dtype=np.uint8)
