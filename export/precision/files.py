"""The files of a lower precision: graphs beside the fp32 ones, and what they add to the weights."""

import tempfile
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
from ptsa_serve.weights import Recipe, WeightsFile, in_steps, metadata

__all__ = ["fp32_graphs", "half_files", "int8_files", "merged", "with_weights"]


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
    weights = {path: _with_recipes(artifact.folder / path, entries, {}) for path, entries in recipes.items()}
    layouts = {path: external_layout(_lengths_of(path, data)) for path, data in weights.items()}
    graphs = [_graph(variant, model, precision, variant.weights, layouts[variant.weights]) for variant, model in made]
    return [*graphs, *(ArtifactFile(path, "weights", data) for path, data in weights.items())]


def int8_files(artifact: Artifact, graphs: Iterable[tuple[Variant, onnx.ModelProto]]) -> list[ArtifactFile]:
    """Quantized graphs, with all weights inside, as files over the weights of the fp32 graphs.

    Of a weight in int8 the file gains the step of each channel: the rest is what is there, counted in these steps.
    """
    made = [(variant, ir.from_proto(proto)) for variant, proto in graphs]
    recipes: dict[str, dict[str, Recipe]] = {}
    tensors: dict[str, dict[str, np.ndarray]] = {}
    for variant, model in made:
        model.metadata_props.clear()  # the quantizer's note to itself
        known, extra = recipes.setdefault(variant.weights, {}), tensors.setdefault(variant.weights, {})
        known |= artifact.weights(variant).recipes
        for name, value in model.graph.initializers.items():
            weight, _, part = name.rpartition("_")
            if part == "quantized" and weight in known and value.const_value is not None:
                steps = model.graph.initializers[f"{weight}_scale"].const_value
                assert steps is not None
                extra[f"{weight}_scale"] = steps.numpy()
                known[f"{weight}_scale"] = Recipe(f"{weight}_scale")
                known[name] = _counted(artifact, variant, weight, value.const_value.numpy(), steps.numpy())
                if known[name].base == name:
                    extra[name] = value.const_value.numpy()
    weights = {path: _with_recipes(artifact.folder / path, entries, tensors[path]) for path, entries in recipes.items()}
    layouts = {path: external_layout(_lengths_of(path, data)) for path, data in weights.items()}
    files = [_graph(variant, model, "int8", variant.weights, layouts[variant.weights]) for variant, model in made]
    return [*files, *(ArtifactFile(path, "weights", data) for path, data in weights.items())]


def _counted(artifact: Artifact, variant: Variant, weight: str, found: np.ndarray, steps: np.ndarray) -> Recipe:
    """How `found`, the quantizer's form of `weight`, is made; as a tensor of its own if counting gives another."""
    file = artifact.weights(variant)
    axis = 0 if found.ndim == 4 else found.ndim - 1  # of a convolution (out, in, h, w), of a matrix (in, out)
    if np.array_equal(in_steps(file.make([weight])[weight], steps, axis), found):
        return replace(file.recipes[weight], steps=f"{weight}_scale", axis=axis)
    return Recipe(f"{weight}_quantized")


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


def _lengths_of(path: str, data: bytes) -> dict[str, int]:
    """Bytes of each tensor that the file of weights `data` makes, in the order of its recipes."""
    with tempfile.TemporaryDirectory(prefix="ptsa-lower-") as folder:
        place = Path(folder) / path
        place.write_bytes(data)
        file = WeightsFile.open(place)
        return {name: array.nbytes for name, array in file.make(file.recipes).items()}


def _with_recipes(path: Path, recipes: Mapping[str, Recipe], tensors: Mapping[str, np.ndarray]) -> bytes:
    """The file of weights at `path` with `tensors` beside its own, and other recipes."""
    with safe_open(path, framework="numpy") as file:
        kept = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    return save({**kept, **tensors}, metadata(recipes))
