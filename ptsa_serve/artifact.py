"""The folder of one model: manifest.json, graphs, the weights they share, a sample with its maps.

The graphs name their large tensors as external data, which an engine hands over by name (`ptsa_serve.weights`); no file
of that data need exist. What differs by size stays inline.
"""

import hashlib
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, Self

import numpy as np

from ptsa_serve.errors import ArtifactError, ManifestError
from ptsa_serve.files import replace_folder, write_file
from ptsa_serve.graphs import Graph, cut
from ptsa_serve.manifest import FileRecord, Manifest, Role
from ptsa_serve.variants import Variant, Variants
from ptsa_serve.weights import WeightsFile

__all__ = ["Artifact", "ArtifactFile", "default_artifact", "external_data", "external_layout", "write_artifact"]

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

    @cached_property
    def variants(self) -> Variants:
        """The graphs of this model."""
        return self.manifest.variants()

    def graph(self, variant: Variant, tasks: Sequence[str] | None = None) -> Graph:
        """The graph of `variant`, cut to `tasks` (None: all that it has).

        Raises ArtifactError for a file that is no ONNX graph.
        """
        path = self.folder / variant.path
        try:
            return cut(path.read_bytes(), variant.tasks if tasks is None else tasks)
        except (OSError, ValueError) as error:
            raise ArtifactError(f"{path} cannot be read ({error}); {_AGAIN}") from None

    def weights(self, variant: Variant) -> WeightsFile:
        """The file of the large tensors of `variant`. Raises ArtifactError if it cannot be read."""
        return self._weights(variant.weights)

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
        with replace_folder(out) as folder:
            for variant in self.variants.all:
                write_file(folder / variant.path, (self.folder / variant.path).read_bytes())
            for path in sorted({variant.weights for variant in self.variants.all}):
                file = self._weights(path)
                _write_arrays(folder / external_data(path), file.make(file.recipes))

    def _weights(self, path: str) -> WeightsFile:
        if path not in self._opened:
            self._opened[path] = WeightsFile.open(self.folder / path)
        return self._opened[path]

    @cached_property
    def _opened(self) -> dict[str, WeightsFile]:
        return {}

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


def external_data(weights: str) -> str:
    """The file that graphs name as the place of the tensors of `weights`: model.onnx.data, model-int8.onnx.data."""
    return f"model{PurePosixPath(weights).stem.removeprefix('weights')}.onnx.data"


def _write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    layout = external_layout({name: array.nbytes for name, array in arrays.items()})
    with path.open("wb") as data:
        for name, array in arrays.items():
            data.seek(layout[name][0])
            data.write(array.data.cast("B"))
        data.flush()
        os.fsync(data.fileno())


def external_layout(lengths: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    """Where each initializer lies in its file: name -> (offset, length) in bytes, in the order given.

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
