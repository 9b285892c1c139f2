"""The folder of one model: manifest.json, a graph for each size, the weights they share, a sample with its maps.

Weights are kept compact (`weights.safetensors`, fp16 mostly) and folded when opened: W = base + scale * up @ down.
The graphs name these tensors as external data, which an engine hands over by name; no file of them need exist. Every
graph must use every one of them (ONNX Runtime refuses a name that a graph lacks); what differs by size stays inline.
"""

import hashlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from safetensors import SafetensorError, safe_open

from ptsa_serve.errors import ArtifactError, ManifestError
from ptsa_serve.files import replace_folder, write_file
from ptsa_serve.manifest import FileRecord, Manifest, Role

__all__ = ["EXTERNAL_DATA", "Artifact", "ArtifactFile", "default_artifact", "external_layout", "write_artifact"]

EXTERNAL_DATA = "model.onnx.data"
# Offsets of external data: whole cache lines, so that a mapped file gives aligned tensors.
_ALIGNMENT = 64
_AGAIN = "copy the folder again, or make it again with `python -m export`"


@dataclass(frozen=True, slots=True)
class ArtifactFile:
    """A file to be written: its bytes, its role, and for graphs height, width, precision, branches, tasks."""

    path: str
    role: Role
    data: bytes
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Artifact:
    """A model folder that was checked; see `open`."""

    folder: Path
    manifest: Manifest

    @classmethod
    def open(cls, folder: Path | str, verify: bool = True) -> Self:
        """Read the manifest of `folder` and, with `verify`, compare every file's length and sha256 with it.

        Raises ArtifactError (no folder, no manifest, a file missing or changed) or ManifestError.
        """
        folder = Path(folder)
        try:
            text = (folder / "manifest.json").read_bytes()
        except OSError:
            kind = "has no manifest.json" if folder.is_dir() else "is not a folder"
            raise ArtifactError(f"{folder} {kind}; name a folder that `python -m export` wrote") from None
        try:
            manifest = Manifest.from_json(text)
        except ManifestError as error:
            raise ManifestError(f"{folder}: {error}") from None
        artifact = cls(folder, manifest)
        if verify:
            for record in manifest.files:
                artifact._check(record)
        return artifact

    def graph_path(self, size: tuple[int, int]) -> Path:
        """The ONNX file for images of `size` (H, W). Raises ArtifactError, naming the sizes that exist."""
        for record in self.manifest.files:
            if record.role == "graph" and (record.height, record.width) == size:
                return self.folder / record.path
        raise ArtifactError(f"{self.folder} has no graph for {size}; sizes: {list(self.manifest.input.sizes)}")

    def initializers(self) -> dict[str, np.ndarray]:
        """The large weights by the names that the graphs give them: float32, C-contiguous, folded.

        Two names with the same recipe share one array. Raises ArtifactError if the weights file cannot be
        read.
        """
        path = self._path("weights")
        try:
            with safe_open(path, framework="numpy") as weights:
                recipes = json.loads((weights.metadata() or {})["initializers"])
                made: dict[str, np.ndarray] = {}
                for recipe in recipes.values():
                    key = json.dumps(recipe, sort_keys=True)
                    if key not in made:
                        made[key] = _fold(weights, recipe)
                return {name: made[json.dumps(recipe, sort_keys=True)] for name, recipe in recipes.items()}
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArtifactError(f"{path} cannot be read ({error}); {_AGAIN}") from error

    def sample(self) -> tuple[bytes, dict[str, np.ndarray]]:
        """The sample photo (bytes of a JPEG) and its maps by task at model size, without a batch axis."""
        photo, maps = self._path("sample-photo"), self._path("sample-maps")
        try:
            with np.load(io.BytesIO(maps.read_bytes()), allow_pickle=False) as arrays:
                return photo.read_bytes(), dict(arrays)
        except (OSError, ValueError) as error:
            raise ArtifactError(f"the sample of {self.folder} cannot be read ({error}); {_AGAIN}") from error

    def write_external_data(self, out: Path) -> None:
        """Write the graphs and a real model.onnx.data into the new folder `out`, as any ONNX runtime reads
        them.
        """
        arrays = self.initializers()
        layout = external_layout({name: array.nbytes for name, array in arrays.items()})
        with replace_folder(out) as folder:
            for size in self.manifest.input.sizes:
                path = self.graph_path(size)
                write_file(folder / path.relative_to(self.folder), path.read_bytes())
            with (folder / EXTERNAL_DATA).open("wb") as data:
                for name, array in arrays.items():
                    data.seek(layout[name][0])
                    data.write(array.data.cast("B"))
                data.flush()
                os.fsync(data.fileno())

    def _path(self, role: Role) -> Path:
        for record in self.manifest.files:
            if record.role == role:
                return self.folder / record.path
        raise ArtifactError(f"{self.folder} lists no file with the role {role!r}; {_AGAIN}")

    def _check(self, record: FileRecord) -> None:
        path = self.folder / record.path
        try:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                length = file.tell()
        except OSError:
            raise ArtifactError(f"{path} is missing or cannot be read; {_AGAIN}") from None
        if length != record.bytes:
            raise ArtifactError(f"{path} has {length} bytes, the manifest says {record.bytes}; {_AGAIN}")
        if digest != record.sha256:
            raise ArtifactError(f"{path} was changed: its sha256 is not the manifest's; {_AGAIN}")


def _fold(weights: Any, recipe: Mapping[str, Any]) -> np.ndarray:
    """fp32(base) + scale * fp32(up) @ fp32(down), transposed if said; up (out, r), down (r, in)."""
    weight = weights.get_tensor(recipe["base"]).astype(np.float32)
    if recipe.get("up"):
        up, down = (weights.get_tensor(recipe[key]).astype(np.float32) for key in ("up", "down"))
        weight += np.float32(recipe.get("scale", 1.0)) * (up @ down)
    return np.ascontiguousarray(weight.T if recipe.get("transpose") else weight)


def external_layout(lengths: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    """Where each initializer lies in model.onnx.data: name -> (offset, length) in bytes, in the order given.

    The graphs must name the same places: export writes them with this function, in the order of the weights
    file.
    """
    layout, offset = {}, 0
    for name, length in lengths.items():
        layout[name] = (offset, length)
        offset += -(-length // _ALIGNMENT) * _ALIGNMENT
    return layout


def write_artifact(out: Path | str, manifest: Manifest, files: Sequence[ArtifactFile]) -> Artifact:
    """Write a model folder whole or not at all; an older folder of that name is replaced. Returns it,
    verified.

    `manifest.files` is filled in from `files`. Raises ManifestError where the two do not agree.
    """
    records = tuple(
        FileRecord(
            path=file.path,
            role=file.role,
            bytes=len(file.data),
            sha256=hashlib.sha256(file.data).hexdigest(),
            **file.attributes,
        )
        for file in files
    )
    text = manifest.model_copy(update={"files": records}).to_json()
    Manifest.from_json(text)
    with replace_folder(Path(out)) as folder:
        for file in files:
            write_file(folder / file.path, file.data)
        write_file(folder / "manifest.json", text.encode())
    return Artifact.open(out)


def default_artifact() -> Path:
    """The folder of the model that came with this package. Raises ArtifactError where it came without one."""
    found = sorted((Path(__file__).parent / "models").glob("*/manifest.json"))
    if not found:
        raise ArtifactError("this installation came without a model; name a model folder with PTSA_MODEL or --model")
    return found[0].parent
