"""The graphs of one model, a file for each form and size, over one common file of weights."""

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from export.emit import emit
from export.fold import Folded
from export.passes import Externalise, tidy
from export.weights import compact, weight_bytes
from ptsa_serve.artifact import ArtifactFile, external_data, external_layout
from ptsa_serve.sizes import Size

__all__ = ["SIZES", "WEIGHTS", "Graph", "build_graph", "files_of", "shown"]

# (H, W): 4:3, 3:4, square, 16:9, 9:16, each of about 200,000 pixels and with sides of whole 32s.
SIZES: tuple[Size, ...] = ((384, 512), (512, 384), (448, 448), (320, 576), (576, 320))

WEIGHTS = "weights.safetensors"


@dataclass(frozen=True)
class Graph:
    """One form of the model for photos of `size` (H, W), None = any multiples of 32.

    model: the graph with all its weights inside. weights: names of those that go to the common file.
    """

    size: Size | None
    folded: Folded
    model: ir.Model
    weights: tuple[str, ...]


def build_graph(folded: Folded, size: Size | None) -> Graph:
    """Export and tidy a folded model: half a minute to some minutes, nearly all in the exporter."""
    graph = emit(folded.network, size)
    parameters = folded.network.named_parameters(remove_duplicate=False)
    weights = tidy(graph, {name: parameter.numpy() for name, parameter in parameters})
    return Graph(size, folded, graph, weights)


def files_of(graphs: Sequence[Graph]) -> list[ArtifactFile]:
    """The graph files, without weights, and the file of weights that they share."""
    names = sorted({name for graph in graphs for name in graph.weights})
    forms = list({id(graph.folded): graph.folded for graph in graphs}.values())
    layout = external_layout(weight_bytes(forms, names))
    files = []
    for graph in graphs:
        model = graph.model.clone()
        Externalise(graph.weights, layout, external_data(WEIGHTS))(model)
        network = graph.folded.network
        form = "" if network.branches == "folded" else f"-{network.branches}"
        sides = {"height": graph.size[0], "width": graph.size[1]} if graph.size else {}
        attributes = {**sides, "precision": "fp32", "branches": network.branches, "tasks": tuple(network.tasks)}
        data = ir.to_proto(model).SerializeToString()
        files.append(ArtifactFile(f"model-{shown(graph.size)}{form}.onnx", "graph", data, attributes))
    files.append(ArtifactFile(WEIGHTS, "weights", compact(forms, names)))
    return files


def shown(size: Size | None) -> str:
    """A size as files and messages name it."""
    return f"{size[0]}x{size[1]}" if size else "dynamic"
