"""The graphs of one model, a file for each size, over one common file of weights."""

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from export.counts import multiply_adds
from export.emit import emit
from export.fold import Folded, fold
from export.passes import Externalise, tidy
from export.weights import compact, weight_bytes
from ptsa_serve.artifact import ArtifactFile, external_data, external_layout
from training.network.model import PTSAModel

__all__ = ["SIZES", "WEIGHTS", "Graph", "build_graph", "files_of"]

# (H, W): 4:3, 3:4, square, 16:9, 9:16, each of about 200,000 pixels and with sides of whole 32s.
SIZES: tuple[tuple[int, int], ...] = ((384, 512), (512, 384), (448, 448), (320, 576), (576, 320))

WEIGHTS = "weights.safetensors"


@dataclass(frozen=True)
class Graph:
    """The model for photos of `size` (H, W).

    model: the graph with all its weights inside. weights: names of those that go to the common file.
    multiply_adds: of one photo.
    """

    size: tuple[int, int]
    folded: Folded
    model: ir.Model
    weights: tuple[str, ...]
    multiply_adds: int


def build_graph(model: PTSAModel, size: tuple[int, int]) -> Graph:
    """Fold, export and tidy `model` for one size: half a minute to some minutes, nearly all in the exporter."""
    folded = fold(model, size)
    graph = emit(folded.network)
    parameters = folded.network.named_parameters(remove_duplicate=False)
    weights = tidy(graph, {name: parameter.numpy() for name, parameter in parameters})
    return Graph(size, folded, graph, weights, multiply_adds(folded.network))


def files_of(graphs: Sequence[Graph]) -> list[ArtifactFile]:
    """The graph files, without weights, and the file of weights that they share. The graphs are changed."""
    names = sorted({name for graph in graphs for name in graph.weights})
    folded = graphs[0].folded
    layout = external_layout(weight_bytes(folded, names))
    files = []
    for graph in graphs:
        Externalise(graph.weights, layout, external_data(WEIGHTS))(graph.model)
        height, width = graph.size
        data = ir.to_proto(graph.model).SerializeToString()
        attributes = {
            "height": height,
            "width": width,
            "precision": "fp32",
            "branches": "folded",
            "tasks": tuple(folded.network.tasks),
        }
        files.append(ArtifactFile(f"model-{height}x{width}.onnx", "graph", data, attributes))
    files.append(ArtifactFile(WEIGHTS, "weights", compact(folded, names)))
    return files
