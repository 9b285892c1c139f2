"""The runtimes that can run an artifact. Each is imported when asked for: none is needed for the others."""

from collections.abc import Callable

from ptsa_serve.artifact import Artifact
from ptsa_serve.engines.base import Engine
from ptsa_serve.errors import EngineError

__all__ = ["ENGINES", "Engine", "load_engine"]


def _onnxruntime(artifact: Artifact, threads: int) -> Engine:
    from ptsa_serve.engines.onnxruntime import OnnxRuntimeEngine

    return OnnxRuntimeEngine(artifact, threads=threads)


ENGINES: dict[str, Callable[[Artifact, int], Engine]] = {"onnxruntime": _onnxruntime}


def load_engine(name: str, artifact: Artifact, threads: int = 0) -> Engine:
    """Start engine `name` on `artifact` with `threads` threads (0: as many as the process may use cores).

    Raises EngineError for an unknown name, a runtime that is not installed, or a model that it refuses.
    """
    if name not in ENGINES:
        raise EngineError(f"there is no engine {name!r}; use one of: {', '.join(sorted(ENGINES))}")
    return ENGINES[name](artifact, threads)
