"""ONNX Runtime on the CPU: the reference engine.

One session a size; all share one copy of the large weights. Measured with five sizes and 76 MiB of weights
(1.32, RSS of the process after a run of each size; milliseconds of a run, least of 25, one thread):

    add_external_initializers alone                  every session copies the weights      656 MB
    add_initializer alone                            looks for the data file and fails
    both, prepacking off, arena off (as here)        no copy                               317 MB   193 ms
    both, prepacking off, arena on                   an arena a session                    468 MB   191 ms
    both, prepacking on, arena off                   a packed copy a session               670 MB   184 ms
"""

from importlib import metadata

import numpy as np

from ptsa_serve.artifact import Artifact
from ptsa_serve.cores import usable_cores
from ptsa_serve.errors import EngineError

__all__ = ["OnnxRuntimeEngine", "session_options"]

_INSTALL = "install it with `pip install 'ptsa-serve[cpu]'`"


class OnnxRuntimeEngine:
    """Sessions of every size of `artifact`. `run` may be called from several threads."""

    name = "onnxruntime"

    def __init__(self, artifact: Artifact, threads: int = 0) -> None:
        """Load every graph. `threads`: cores one run uses; 0: those this process may use.

        Raises EngineError if the runtime is missing or refuses a graph.
        """
        ort = _import()
        self.version = ort.__version__
        self.sizes = artifact.manifest.input.sizes
        self._input = artifact.manifest.input.name
        self._tasks = tuple(artifact.manifest.task_table())
        self._arrays = artifact.initializers()
        # Sessions keep the values, not a copy: they and the arrays live as long as the engine.
        self._values = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in self._arrays.items()}
        self._sessions = {}
        for size in self.sizes:
            path = artifact.graph_path(size)
            options = session_options(ort, threads, self._values)
            try:
                session = ort.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
            except Exception as error:
                raise EngineError(
                    f"ONNX Runtime {self.version} cannot load {path} ({_first_line(error)}); "
                    "copy the folder again, or make it again with `python -m export`"
                ) from error
            self._sessions[size] = session

    def run(self, batch: np.ndarray) -> dict[str, np.ndarray]:
        """See `Engine.run`."""
        size = batch.shape[1:3]
        if batch.dtype != np.uint8 or batch.ndim != 4 or batch.shape[3] != 3 or size not in self._sessions:
            wanted = " or ".join(f"(N, {height}, {width}, 3)" for height, width in self.sizes)
            raise EngineError(f"got {batch.dtype} {batch.shape}, the model takes uint8 {wanted}")
        try:
            maps = self._sessions[size].run(self._tasks, {self._input: batch})
        except Exception as error:
            raise EngineError(f"ONNX Runtime failed on {batch.shape}: {_first_line(error)}") from error
        return dict(zip(self._tasks, maps, strict=True))

    def close(self) -> None:
        """See `Engine.close`."""
        self._sessions.clear()
        self._values.clear()
        self._arrays.clear()


def session_options(ort, threads: int, values: dict):
    """Options of a session as it is served, for a graph whose large weights are `values` (name -> OrtValue).

    Public for the benchmarks: what they time must be what runs.
    """
    options = ort.SessionOptions()
    # The first lets the optimizers read the values without the data file, the second keeps them from being copied.
    if values:
        options.add_external_initializers(list(values), list(values.values()))
    for name, value in values.items():
        options.add_initializer(name, value)
    options.intra_op_num_threads = threads or usable_cores()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Threads that spin while they wait take the cores from decoding and encoding.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # See the table above: 350 MB for a twentieth of the time.
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    return options


def _import():
    """The module, if exactly one build of it is installed: two share one folder and break each other."""
    builds = [name for name in ("onnxruntime", "onnxruntime-gpu") if _installed(name)]
    if len(builds) > 1:
        raise EngineError(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other; "
            "run `pip uninstall onnxruntime onnxruntime-gpu`, then install one"
        )
    try:
        import onnxruntime
    except ImportError as error:
        raise EngineError(f"ONNX Runtime cannot be imported ({error}); {_INSTALL}") from error
    return onnxruntime


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
