"""ONNX Runtime on the CPU: the reference engine.

Two sessions for each graph and set of tasks: one whose runs take all threads, for a photo that is alone, and one whose
runs take a core each and go on side by side. Sessions are made when they are first asked for; all share one copy of the
large weights and one arena for what lies between layers.
"""

import threading
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import numpy as np

from ptsa_serve.artifact import Artifact
from ptsa_serve.cores import usable_cores
from ptsa_serve.engines.base import EngineOptions, check_batch, first_line
from ptsa_serve.errors import EngineError
from ptsa_serve.graphs import Graph
from ptsa_serve.variants import Precision, Variant

__all__ = ["OnnxRuntimeEngine", "builds", "import_runtime", "load", "offers"]

# Sessions of fewer tasks than all that are kept: there are 14 sets of four tasks, for each graph.
_PARTIAL = 8

_CANNOT: set[Precision] = {"bf16"}

_INSTALL = "install it with `pip install 'ptsa-serve[cpu]'`"

Key = tuple[Variant, tuple[str, ...], int]  # graph, tasks, threads


class OnnxRuntimeEngine:
    """Sessions on one artifact. `run` may be called from several threads."""

    name = "onnxruntime"

    def __init__(self, artifact: Artifact, options: EngineOptions) -> None:
        """Raises EngineError if the runtime is missing, ArtifactError for a form that the artifact lacks."""
        self._ort = import_runtime()
        self.version = self._ort.__version__
        self._artifact = artifact
        self._form = artifact.variants.form(options.precision, options.branches)
        self.precision, self.branches = self._form.precision, self._form.branches
        if self.precision in _CANNOT:
            raise EngineError(
                f"ONNX Runtime has no {self.precision} kernels for CPUs; choose another engine or precision"
            )
        self.sizes = artifact.variants.sizes(self._form)
        self.lanes = options.threads or usable_cores()
        self._input = artifact.manifest.input.name
        self._tasks = tuple(artifact.manifest.task_table())
        # Sessions keep the values, not a copy: they and the arrays live as long as the engine.
        self._arrays: dict[str, np.ndarray] = {}
        self._values: dict[str, Any] = {}
        self._sessions: dict[Key, Any] = {}
        self._making = threading.Lock()
        _share_arena(self._ort)

    def run(
        self, batch: np.ndarray, tasks: Sequence[str] | None = None, *, alone: bool = True
    ) -> dict[str, np.ndarray]:
        """See `Engine.run`."""
        size = check_batch(batch, self.sizes)
        wanted = self._tasks if tasks is None else tuple(task for task in self._tasks if task in tasks)
        variant = self._artifact.variants.choose(self._form, size, wanted)
        session = self._session((variant, wanted, self.lanes if alone else 1))
        try:
            maps = session.run(wanted, {self._input: batch})
        except Exception as error:
            raise EngineError(f"ONNX Runtime failed on {batch.shape}: {first_line(error)}") from error
        return dict(zip(wanted, maps, strict=True))

    def close(self) -> None:
        """See `Engine.close`."""
        self._sessions.clear()
        self._values.clear()
        self._arrays.clear()

    def _session(self, key: Key) -> Any:
        with self._making:
            session = self._sessions.pop(key, None) or self._load(key)
            self._sessions[key] = session  # the last used is the last
            partial = [kept for kept in self._sessions if kept[1] != self._tasks]
            for old in partial[:-_PARTIAL]:
                del self._sessions[old]
        return session

    def _load(self, key: Key) -> Any:
        variant, tasks, threads = key
        graph = self._artifact.graph(variant, tasks)
        missing = [name for name in graph.weights if name not in self._values]
        self._arrays |= (made := self._artifact.weights(variant).make(missing))
        self._values |= {name: self._ort.OrtValue.ortvalue_from_numpy(array) for name, array in made.items()}
        options = _session_options(self._ort, graph, self._values, threads)
        try:
            return self._ort.InferenceSession(graph.data, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise EngineError(
                f"ONNX Runtime {self.version} cannot load {self._artifact.folder / variant.path} "
                f"({first_line(error)}); copy the folder again, or make it again with `python -m export`"
            ) from error


def load(artifact: Artifact, options: EngineOptions) -> OnnxRuntimeEngine:
    """See `EngineRow`."""
    return OnnxRuntimeEngine(artifact, options)


def offers(artifact: Artifact) -> list[EngineOptions]:
    """See `EngineRow`."""
    if not builds():
        return []
    forms = [form for form in artifact.variants.forms if form.precision not in _CANNOT]
    return [EngineOptions(precision=form.precision, branches=form.branches) for form in forms]


def _session_options(ort: Any, graph: Graph, values: dict[str, Any], threads: int) -> Any:
    """Options of a session as it is served, for `graph` with its large weights in `values` (name -> OrtValue)."""
    options = ort.SessionOptions()
    if graph.weights:
        own = [values[name] for name in graph.weights]
        # The first lets the optimizers read the values without the data file, the second keeps them from being copied.
        options.add_external_initializers(list(graph.weights), own)
        for name, value in zip(graph.weights, own, strict=True):
            options.add_initializer(name, value)
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.use_env_allocators", "1")
    # A packed copy of the weights for each session.
    options.add_session_config_entry("session.disable_prepacking", "1")
    return options


_arena: list[str] = []


def _share_arena(ort: Any) -> None:
    """Once a process: the arena that sessions with `session.use_env_allocators` take their memory from."""
    if not _arena:
        place = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
        ort.create_and_register_allocator(place, None)
        _arena.append("made")


def import_runtime() -> Any:
    """The module, if exactly one build of it is installed: two share one folder and break each other."""
    if len(builds()) > 1:
        raise EngineError(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other; "
            "run `pip uninstall onnxruntime onnxruntime-gpu`, then install one"
        )
    try:
        import onnxruntime
    except ImportError as error:
        raise EngineError(f"ONNX Runtime cannot be imported ({error}); {_INSTALL}") from error
    return onnxruntime


def builds() -> list[str]:
    return [name for name in ("onnxruntime", "onnxruntime-gpu") if _installed(name)]


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True
