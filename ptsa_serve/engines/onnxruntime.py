"""ONNX Runtime on the CPU: the reference engine.

Two sessions for each graph and set of tasks: one whose runs take all threads, for a photo that is alone, and one whose
runs take a core each and go on side by side. Sessions are made when they are first asked for; all share one copy of the
large weights and one arena for what lies between layers. What remains is about 15 MB a session: convolutions in blocks,
masks and indices of a size. Sessions at the model's first size, the only one of most services, have a packed copy of
their weights besides, which saves a tenth of their time. Where memory is preferred there is no such copy, one run at a
time, so the first kind alone, and the arena is emptied after each.
"""

from collections.abc import Sequence
from importlib import metadata
from typing import Any

import numpy as np

from ptsa_serve.artifact import Artifact
from ptsa_serve.cores import usable_cores
from ptsa_serve.engines.base import EngineOptions, Prefer, check_batch, first_line
from ptsa_serve.engines.kept import Kept
from ptsa_serve.errors import EngineError
from ptsa_serve.graphs import Graph
from ptsa_serve.heap import give_back
from ptsa_serve.variants import Precision, Variant

__all__ = ["OnnxRuntimeEngine", "builds", "import_runtime", "load", "offers"]

# Sessions that are kept: of five sizes, each way, and eight of fewer tasks, whose sets are 14 for each graph.
_KEPT: dict[Prefer, int] = {"speed": 18, "memory": 5}

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
        self._threads = options.threads or usable_cores()
        self._prefer = options.prefer
        self._packed = artifact.variants.first(self._form) if self._prefer == "speed" else None
        self.lanes = 1 if self._prefer == "memory" else self._threads
        self._input = artifact.manifest.input.name
        self._tasks = tuple(artifact.manifest.task_table())
        # Sessions keep the values, not a copy: they and the arrays live as long as the engine.
        self._arrays: dict[str, np.ndarray] = {}
        self._values: dict[str, Any] = {}
        self._sessions: Kept[Key, Any] = Kept(self._load, _KEPT[self._prefer])
        self._run_options = _run_options(self._ort, self._prefer)
        _share_arena(self._ort)

    def run(
        self, batch: np.ndarray, tasks: Sequence[str] | None = None, *, alone: bool = True
    ) -> dict[str, np.ndarray]:
        """See `Engine.run`."""
        size = check_batch(batch, self.sizes)
        wanted = self._tasks if tasks is None else tuple(task for task in self._tasks if task in tasks)
        variant = self._artifact.variants.choose(self._form, size, wanted)
        session = self._sessions.get((variant, wanted, self._threads if alone or self.lanes == 1 else 1))
        try:
            maps = session.run(wanted, {self._input: batch}, self._run_options)
        except Exception as error:
            raise EngineError(f"ONNX Runtime failed on {batch.shape}: {first_line(error)}") from error
        if self._prefer == "memory":
            give_back()
        return dict(zip(wanted, maps, strict=True))

    def close(self) -> None:
        """See `Engine.close`."""
        self._sessions.close()
        self._values.clear()
        self._arrays.clear()

    def _load(self, key: Key) -> Any:
        variant, tasks, threads = key
        graph = self._artifact.graph(variant, tasks)
        missing = [name for name in graph.weights if name not in self._values]
        self._arrays |= (made := self._artifact.weights(variant).make(missing))
        self._values |= {name: self._ort.OrtValue.ortvalue_from_numpy(array) for name, array in made.items()}
        options = _session_options(self._ort, graph, self._values, threads, packed=variant == self._packed)
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


def _session_options(ort: Any, graph: Graph, values: dict[str, Any], threads: int, *, packed: bool) -> Any:
    """Options of a session as it is served, for `graph` with its large weights in `values` (name -> OrtValue).

    packed: with a copy of the weights in the order that products read them; sessions cannot share it.
    """
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
    options.add_session_config_entry("session.disable_prepacking", str(int(not packed)))
    # One block for all that a run needs: no faster than pieces of the arena, which other runs find a use for.
    options.enable_mem_pattern = False
    return options


def _run_options(ort: Any, prefer: Prefer) -> Any:
    """Options of each run; None for those of the runtime."""
    if prefer == "speed":
        return None
    options = ort.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
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
