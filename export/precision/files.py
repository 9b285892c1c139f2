"""The files of a lower precision: graphs beside the fp32 ones, and what they add to the weights."""

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np
import onnx
import onnx_ir as ir
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
    """Graphs in fp16 or bf16, and a file of recipes over the weights of the fp32 graphs: no second copy of anything."""
    made: list[tuple[Variant, ir.Model]] = []
    recipes: dict[str, dict[str, Recipe]] = {}
    for variant in fp32_graphs(artifact):
        proto = onnx.load_model_from_string(artifact.graph(variant).data)
        model, renamed = to_half(proto, HALVES[precision])
        made.append((variant, model))
        known = artifact.weights(variant).recipes
        halves = {new: replace(known[old], dtype=new.rpartition(".")[2]) for new, old in renamed.items()}
        recipes.setdefault(variant.weights, {}).update(_used(model, {**known, **halves}))
    return _files(artifact, precision, made, recipes, {})


def int8_files(artifact: Artifact, graphs: Iterable[tuple[Variant, onnx.ModelProto]]) -> list[ArtifactFile]:
    """Quantized graphs, with all weights inside, as files over the weights of the fp32 graphs.

    Of a weight in int8 there is the step of each channel alone: the rest is what was there, counted in these steps.
    """
    made = [(variant, ir.from_proto(proto)) for variant, proto in graphs]
    recipes: dict[str, dict[str, Recipe]] = {}
    tensors: dict[str, dict[str, np.ndarray]] = {}
    for variant, model in made:
        model.metadata_props.clear()  # the quantizer's note to itself
        known, extra = dict(artifact.weights(variant).recipes), tensors.setdefault(variant.weights, {})
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
        recipes.setdefault(variant.weights, {}).update(_used(model, known))
    return _files(artifact, "int8", made, recipes, tensors)


def _used(model: ir.Model, recipes: Mapping[str, Recipe]) -> dict[str, Recipe]:
    return {name: recipes[name] for name in model.graph.initializers if name in recipes}


def _files(
    artifact: Artifact,
    precision: Precision,
    graphs: Sequence[tuple[Variant, ir.Model]],
    recipes: Mapping[str, Mapping[str, Recipe]],
    tensors: Mapping[str, Mapping[str, np.ndarray]],
) -> list[ArtifactFile]:
    """Files of the graphs, and for each file of weights one over it, with `recipes` and `tensors` of its own."""
    files = []
    for below, entries in recipes.items():
        path = f"weights{PurePosixPath(below).stem.removeprefix('weights')}-{precision}.safetensors"
        data = save(dict(tensors.get(below, {})), metadata(entries, over=below))
        layout = external_layout(_lengths(artifact.folder / below, data))
        own = [(variant, model) for variant, model in graphs if variant.weights == below]
        files += [_graph(variant, model, precision, path, layout) for variant, model in own]
        files.append(ArtifactFile(path, "weights", data))
    return files


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


def _lengths(below: Path, data: bytes) -> dict[str, int]:
    """Bytes of each tensor that the file of weights `data`, over that at `below`, makes, in its order."""
    with tempfile.TemporaryDirectory(prefix="ptsa-lower-") as folder:
        place = Path(folder) / "over.safetensors"
        place.write_bytes(data)
        file = WeightsFile(place, WeightsFile.open(place).recipes, below)
        return {name: array.nbytes for name, array in file.make(file.recipes).items()}
