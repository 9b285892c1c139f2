"""The runtimes that can run an artifact. Each is imported when asked for: none is needed for the others."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module, metadata
from typing import Any, Literal

from ptsa_serve.artifact import Artifact
from ptsa_serve.engines.base import Engine, EngineOptions
from ptsa_serve.errors import EngineError

__all__ = ["ENGINES", "Engine", "EngineOptions", "EngineRow", "load_engine"]


@dataclass(frozen=True, slots=True)
class EngineRow:
    """Where an engine is: a module of this package with two functions. distributions: what of PyPI it may come in.

    `load(artifact, options) -> Engine` raises EngineError if the runtime is missing, or refuses a graph.
    `offers(artifact) -> list[EngineOptions]`: what it can run of this artifact on this machine, in any number of ways;
    none where its runtime is missing. device: what it runs on. packs: every graph that it has loaded, one for each size
    and way to run, holds a copy of the weights.
    """

    module: str
    distributions: tuple[str, ...]
    device: Literal["cpu", "gpu"] = "cpu"
    packs: bool = False

    def version(self) -> str:
        """Of the runtime that is installed; "" for none."""
        for name in self.distributions:
            with suppress(metadata.PackageNotFoundError):
                return metadata.version(name)
        return ""

    def load(self, artifact: Artifact, options: EngineOptions) -> Engine:
        return self._function("load")(artifact, options)

    def offers(self, artifact: Artifact) -> Sequence[EngineOptions]:
        return self._function("offers")(artifact)

    def _function(self, name: str) -> Callable[..., Any]:
        return getattr(import_module(self.module), name)


ENGINES: dict[str, EngineRow] = {
    "onnxruntime": EngineRow("ptsa_serve.engines.onnxruntime", ("onnxruntime", "onnxruntime-gpu")),
    "openvino": EngineRow("ptsa_serve.engines.openvino", ("openvino",), packs=True),
    "onnxruntime-cuda": EngineRow("ptsa_serve.engines.onnxruntime_cuda", ("onnxruntime-gpu",), "gpu"),
    "onnxruntime-tensorrt": EngineRow("ptsa_serve.engines.onnxruntime_tensorrt", ("onnxruntime-gpu",), "gpu"),
    "tensorrt": EngineRow("ptsa_serve.engines.tensorrt", ("tensorrt",), "gpu"),
    "tensorrt_rtx": EngineRow("ptsa_serve.engines.tensorrt_rtx", ("tensorrt_rtx",), "gpu"),
}


def load_engine(name: str, artifact: Artifact, options: EngineOptions | None = None) -> Engine:
    """Start engine `name` on `artifact`.

    Raises EngineError for an unknown name, a runtime that is not installed, or a model that it refuses; ArtifactError
    for a precision or branches that the artifact has no graph of.
    """
    if name not in ENGINES:
        raise EngineError(f"there is no engine {name!r}; use one of: {', '.join(sorted(ENGINES))}")
    return ENGINES[name].load(artifact, options or EngineOptions())
