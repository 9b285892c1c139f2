"""An artifact's graphs in int8: calibrated on photos, without the layers that its maps suffer most from."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from export.photos import photo_at
from export.precision.files import fp32_graphs, int8_files, with_weights
from export.precision.int8 import layers, to_int8
from ptsa_serve.artifact import Artifact, ArtifactFile
from ptsa_serve.cores import usable_cores
from ptsa_serve.difference import difference
from ptsa_serve.tasks import Task
from ptsa_serve.variants import Variant

__all__ = ["Source", "attempts", "int8_artifact", "sources", "worst_layers"]

# Photos on which the harm of one layer is measured: it is compared with that of others, on the same photos.
_HARM_PHOTOS = 4


@dataclass(frozen=True)
class Source:
    """A fp32 graph to quantize. model: a file with all weights inside. ranges: file of what calibration finds. photos:
    uint8 (H, W, 3) at its size. layers: nodes by layer.
    """

    variant: Variant
    model: Path
    ranges: Path
    photos: Sequence[np.ndarray]
    layers: Mapping[str, Sequence[str]]

    def quantized(self, chosen: Sequence[str], out: Path) -> Path:
        """Write the graph with the layers `chosen` in int8 to `out`."""
        nodes = [node for layer in chosen for node in self.layers[layer]]
        to_int8(self.model, out, nodes, self.photos, self.ranges)
        return out


def sources(artifact: Artifact, photos: Sequence[Path], folder: Path) -> list[Source]:
    """The fp32 graphs of `artifact`, their files in the new folder `folder`."""
    found = []
    for number, variant in enumerate(fp32_graphs(artifact)):
        place = folder / str(number)
        place.mkdir(parents=True)
        model = with_weights(artifact, variant)
        onnx.save(model, place / "model.onnx")
        rule = artifact.variants.rule
        size = variant.size or (rule.choose(3, 4) if rule else artifact.manifest.input.sizes[0])
        pixels = [photo_at(photo, size) for photo in photos]
        found.append(Source(variant, place / "model.onnx", place / "ranges.json", pixels, layers(model)))
    return found


def attempts(layer_count: int) -> Iterator[int]:
    """How many layers are left out at each attempt: none, then twice as many each time, while most are left."""
    yield 0
    count = 1
    while count <= layer_count // 2:
        yield count
        count *= 2


def worst_layers(source: Source, tasks: Mapping[str, Task]) -> list[str]:
    """The layers, by how far the maps lie from those of fp32 with that layer alone in int8; the worst first.

    A map's distance is the mean of `difference`, which for every kind is a share or of that order; tasks count alike.
    """
    photos = source.photos[:_HARM_PHOTOS]
    expected = _maps(source.model, tuple(tasks), photos)
    harm = {}
    for layer in source.layers:
        out = source.quantized([layer], source.model.with_name("one.onnx"))
        found = _maps(out, tuple(tasks), photos)
        harm[layer] = sum(
            difference(task.kind, mine[name], right[name]).mean
            for mine, right in zip(found, expected, strict=True)
            for name, task in tasks.items()
        )
    return sorted(harm, key=lambda layer: -harm[layer])


def int8_artifact(found: Sequence[Source], left_out: Sequence[str], artifact: Artifact) -> list[ArtifactFile]:
    """The files of int8 graphs of all `found`, in which the layers `left_out` stay fp32."""
    graphs = []
    for source in found:
        chosen = [layer for layer in source.layers if layer not in left_out]
        graphs.append((source.variant, onnx.load(source.quantized(chosen, source.model.with_name("int8.onnx")))))
    return int8_files(artifact, graphs)


def _maps(model: Path, tasks: tuple[str, ...], photos: Sequence[np.ndarray]) -> list[dict[str, np.ndarray]]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = usable_cores()
    options.log_severity_level = 3
    session: Any = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return [dict(zip(tasks, session.run(tasks, {name: photo[None]}), strict=True)) for photo in photos]
