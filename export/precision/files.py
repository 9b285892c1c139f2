"""The files of a lower precision: graphs beside the fp32 ones, and what they add to the weights."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from safetensors import safe_open
from safetensors.numpy import save

from export.passes import Externalise, StripMetadata
from export.precision.half import HALVES, to_half
from ptsa_serve.artifact import Artifact, ArtifactFile, external_data, external_layout
from ptsa_serve.variants import Precision, Variant
from ptsa_serve.weights import Recipe, WeightsFile, metadata

__all__ = ["fp32_graphs", "half_files", "int8_files", "merged", "with_weights"]

INT8_WEIGHTS = "weights-int8.safetensors"


def fp32_graphs(artifact: Artifact) -> list[Variant]:
    """What a lower precision is made from."""
    return [variant for variant in artifact.variants.all if variant.form.precision == "fp32"]


def half_files(artifact: Artifact, precision: Precision) -> list[ArtifactFile]:
    """Graphs in fp16 or bf16, and the files of weights of the fp32 graphs. Their tensors stay the same: they gain
    recipes for the halves, no second copy.
    """
    made: list[tuple[Variant, ir.Model]] = []
    recipes: dict[str, dict[str, Recipe]] = {}
    for variant in fp32_graphs(artifact):
        proto = onnx.load_model_from_string(artifact.graph(variant).data)
        model, renamed = to_half(proto, HALVES[precision])
        made.append((variant, model))
        known = artifact.weights(variant).recipes
        dtype = {new: new.rpartition(".")[2] for new in renamed}
        new = {name: replace(known[old], dtype=dtype[name]) for name, old in renamed.items()}
        recipes.setdefault(variant.weights, dict(known)).update(new)
    weights = {path: _with_recipes(artifact.folder / path, entries) for path, entries in recipes.items()}
    layouts = {
        path: external_layout(_lengths(WeightsFile(artifact.folder / path, entries)))
        for path, entries in recipes.items()
    }
    graphs = [_graph(variant, model, precision, variant.weights, layouts[variant.weights]) for variant, model in made]
    return [*graphs, *(ArtifactFile(path, "weights", data) for path, data in weights.items())]


def int8_files(graphs: Iterable[tuple[Variant, onnx.ModelProto]], weights: Iterable[str]) -> list[ArtifactFile]:
    """Quantized graphs, with all weights inside, as files over one file of weights of their own.

    weights: names of the large tensors of the fp32 graphs; what the quantizer made of one has its name and a suffix.
    """
    known = tuple(weights)
    made = [(variant, ir.from_proto(proto)) for variant, proto in graphs]
    arrays: dict[str, np.ndarray] = {}
    for _, model in made:
        model.metadata_props.clear()  # the quantizer's note to itself
        for name, value in model.graph.initializers.items():
            if name.startswith(known) and value.const_value is not None:
                arrays[name] = value.const_value.numpy()
    layout = external_layout({name: array.nbytes for name, array in arrays.items()})
    files = [_graph(variant, model, "int8", INT8_WEIGHTS, layout) for variant, model in made]
    recipes = {name: Recipe(name) for name in arrays}
    data = save({name: _smallest(array) for name, array in arrays.items()}, metadata(recipes))
    return [*files, ArtifactFile(INT8_WEIGHTS, "weights", data)]


def with_weights(artifact: Artifact, variant: Variant) -> onnx.ModelProto:
    """The graph of `variant` with its weights inside, and a name for every node."""
    graph = artifact.graph(variant)
    arrays = artifact.weights(variant).make(graph.weights)
    model = onnx.load_model_from_string(graph.data)
    for tensor in model.graph.initializer:
        if tensor.name in arrays:
            tensor.CopyFrom(onnx.numpy_helper.from_array(arrays[tensor.name], tensor.name))
    for number, node in enumerate(model.graph.node):
        node.name = f"node{number}"
    return model


def merged(artifact: Artifact, files: Sequence[ArtifactFile]) -> list[ArtifactFile]:
    """The files of `artifact`, those of the same path replaced, then the others of `files`: the first file of weights,
    which graphs that name none have, stays the first.
    """
    new = {file.path: file for file in files}
    fields = ("height", "width", "precision", "branches", "tasks", "weights")
    kept = []
    for record in artifact.manifest.files:
        attributes = {name: value for name in fields if (value := getattr(record, name)) is not None}
        data = (artifact.folder / record.path).read_bytes()
        kept.append(new.pop(record.path, None) or ArtifactFile(record.path, record.role, data, attributes))
    return [*kept, *new.values()]


def _graph(
    variant: Variant, model: ir.Model, precision: Precision, weights: str, layout: Mapping[str, tuple[int, int]]
) -> ArtifactFile:
    names = tuple(name for name in model.graph.initializers if name in layout)
    StripMetadata()(model)
    Externalise(names, layout, external_data(weights))(model)
    path = Path(variant.path)
    height, width = variant.size or (None, None)
    attributes = {
        "height": height,
        "width": width,
        "precision": precision,
        "branches": variant.form.branches,
        "tasks": variant.tasks,
        "weights": weights,
    }
    data = ir.to_proto(model).SerializeToString()
    return ArtifactFile(f"{path.stem}-{precision}{path.suffix}", "graph", data, attributes)


def _lengths(file: WeightsFile) -> dict[str, int]:
    return {name: array.nbytes for name, array in file.make(file.recipes).items()}


def _with_recipes(path: Path, recipes: Mapping[str, Recipe]) -> bytes:
    with safe_open(path, framework="numpy") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    return save(tensors, metadata(recipes))


def _smallest(array: np.ndarray) -> np.ndarray:
    """fp16 if that holds every value exactly, else as it is; integers are small already."""
    if array.dtype != np.float32:
        return array
    half = array.astype(np.float16)
    return half if np.array_equal(half.astype(np.float32), array) else array
