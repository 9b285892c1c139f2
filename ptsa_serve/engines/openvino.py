"""OpenVINO on the CPU: fp32, and bf16 where the CPU has it, from the fp32 graphs; int8 and fp16 from graphs of theirs.

A graph is compiled for each set of tasks when it is first asked for, and runs on all threads; that of the model's first
size, the only one of most services, a second time for photos side by side, in streams of a core each. The large weights
of all graphs are one copy, but what a compiled graph packs of them for its kernels, its nodes and what lies between its
layers is its own: 90 MB a graph of the shipped model in int8, 130 in fp32. So graphs of long ago are dropped. Where
memory is preferred there is one run at a time, so no streams, fewer graphs are kept, and a run gives back what lay
between its layers.
"""

import threading
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from ptsa_serve.artifact import Artifact
from ptsa_serve.cores import usable_cores
from ptsa_serve.engines.base import EngineOptions, Prefer, check_batch, first_line
from ptsa_serve.engines.kept import Kept
from ptsa_serve.engines.openvino_graph import suit
from ptsa_serve.errors import EngineError
from ptsa_serve.graphs import Graph, with_inputs
from ptsa_serve.heap import give_back
from ptsa_serve.variants import Precision, Variant

__all__ = ["OpenVinoEngine", "load", "offers"]

_INSTALL = "install it with `pip install 'ptsa-serve[openvino]'`"
# Compiled graphs that are kept: of five sizes, the first both ways, and two of fewer tasks, both ways. Another takes
# 2 s to compile, so with fewer than the model has sizes nearly every photo would wait for that.
_KEPT: dict[Prefer, int] = {"speed": 10, "memory": 5}

Key = tuple[Variant, tuple[str, ...], bool]  # graph, tasks, alone


@dataclass(frozen=True, slots=True)
class _Way:
    """How a precision is computed. graphs: from those of which precision, the first that there is. hint: what the
    runtime is told. capability: what the CPU must have.
    """

    graphs: tuple[Precision, ...]
    hint: str
    capability: str


_WAYS: dict[Precision, _Way] = {
    "fp32": _Way(("fp32",), "f32", "FP32"),
    "bf16": _Way(("bf16", "fp32"), "bf16", "BF16"),
    "fp16": _Way(("fp16",), "f16", "FP16"),
    "int8": _Way(("int8",), "f32", "INT8"),
}


class OpenVinoEngine:
    """Compiled graphs of one artifact. `run` may be called from several threads."""

    name = "openvino"

    def __init__(self, artifact: Artifact, options: EngineOptions) -> None:
        """Raises EngineError if the runtime is missing or the CPU lacks the precision, ArtifactError for a form that
        the artifact lacks.
        """
        self._core = _core()
        self._ov = _import()
        self.version = self._ov.get_version().split("-")[0]
        self.precision = options.precision or artifact.variants.form(None, options.branches).precision
        self._way = _WAYS[self.precision]
        if self._way.capability not in (found := _capabilities(self._core)):
            able = ", ".join(precision for precision, way in _WAYS.items() if way.capability in found)
            raise EngineError(f"this CPU does not compute {self.precision}; OpenVINO runs {able} on it: choose one")
        self._artifact = artifact
        self._form = artifact.variants.form(_graph(artifact, self._way), options.branches)
        self.branches = self._form.branches
        self.sizes = artifact.variants.sizes(self._form)
        self._first = artifact.variants.first(self._form)
        self._threads = options.threads or usable_cores()
        self._prefer = options.prefer
        self.lanes = 1 if self._prefer == "memory" else self._threads
        # What lies between the layers of a graph must not be given back while another run needs it.
        self._turn = threading.Lock() if self._prefer == "memory" else nullcontext()
        self._input = artifact.manifest.input.name
        self._tasks = tuple(artifact.manifest.task_table())
        self._weights: dict[str, np.ndarray] = {}
        self._exchanged: dict[str, np.ndarray] = {}  # of them, see `suit`
        self._graphs: Kept[Key, Any] = Kept(self._compile, _KEPT[self._prefer])

    def run(
        self, batch: np.ndarray, tasks: Sequence[str] | None = None, *, alone: bool = True
    ) -> dict[str, np.ndarray]:
        """See `Engine.run`."""
        size = check_batch(batch, self.sizes)
        wanted = self._tasks if tasks is None else tuple(task for task in self._tasks if task in tasks)
        variant = self._artifact.variants.choose(self._form, size, wanted)
        alone = alone or self.lanes == 1 or variant != self._first
        # Compiling takes seconds: the first photos side by side run as if they were alone.
        compiled = self._graphs.get((variant, wanted, alone), meanwhile=None if alone else (variant, wanted, True))
        with self._turn:
            try:
                # A request of its own: one cannot be used by two threads.
                request = compiled.create_infer_request()
                answers = [request.infer({self._input: photo[None]}, share_inputs=True) for photo in batch]
                return {name: np.concatenate([maps[name] for maps in answers]) for name in wanted}
            except Exception as error:
                raise EngineError(f"OpenVINO failed on {batch.shape}: {first_line(error)}") from error
            finally:
                if self._prefer == "memory":
                    compiled.release_memory()
                    give_back()

    def close(self) -> None:
        """See `Engine.close`."""
        self._graphs.close()
        self._weights.clear()
        self._exchanged.clear()

    def _compile(self, key: Key) -> Any:
        variant, tasks, alone = key
        graph = self._artifact.graph(variant, tasks)
        missing = [name for name in graph.weights if name not in self._weights]
        self._weights |= self._artifact.weights(variant).make(missing)
        config = {
            "INFERENCE_NUM_THREADS": self._threads,
            "NUM_STREAMS": 1 if alone else self.lanes,
            "INFERENCE_PRECISION_HINT": self._way.hint,
            # Which cores it may use is the operator's business: two servers would pin themselves to the same.
            "ENABLE_CPU_PINNING": False,
            # Kernels made for each chain of operators take 35 MB a graph, and save no time in graphs made to suit it.
            "SNIPPETS_MODE": "DISABLE",
        }
        try:
            return self._core.compile_model(self._model(graph), "CPU", config)
        except Exception as error:
            raise EngineError(
                f"OpenVINO {self.version} cannot load {self._artifact.folder / variant.path} "
                f"({first_line(error)}); copy the folder again, or make it again with `python -m export`"
            ) from error

    def _model(self, graph: Graph) -> Any:
        """The runtime's form of `graph`, its large weights being our arrays, not copies of them."""
        model = self._core.read_model(with_inputs(graph))
        for parameter in model.get_parameters():
            if (array := self._weights.get(parameter.get_friendly_name())) is not None:
                constant = self._ov.op.Constant(_tensor(self._ov, array), shared_memory=True)
                constant.set_friendly_name(parameter.get_friendly_name())
                parameter.output(0).replace(constant.output(0))
                model.remove_parameter(parameter)
        suit(self._ov, model, self._weights, self._exchanged)
        return model


def load(artifact: Artifact, options: EngineOptions) -> OpenVinoEngine:
    """See `EngineRow`."""
    return OpenVinoEngine(artifact, options)


def offers(artifact: Artifact) -> list[EngineOptions]:
    """See `EngineRow`."""
    try:
        found = _capabilities(_core())
    except EngineError:
        return []
    return [
        EngineOptions(precision=precision, branches=form.branches)
        for precision, way in _WAYS.items()
        if way.capability in found
        for form in artifact.variants.forms
        if form.precision == _graph(artifact, way)
    ]


def _tensor(ov: Any, array: np.ndarray) -> Any:
    """The runtime's view of `array`; NumPy has no bfloat16 that it would know."""
    if array.dtype.name == "bfloat16":
        return ov.Tensor(array.view(np.uint16), ov.Shape(array.shape), ov.Type.bf16)
    return ov.Tensor(array, shared_memory=True)


def _graph(artifact: Artifact, way: _Way) -> Precision:
    """The precision of the graphs that are run; the last choice if the artifact has none of them."""
    there = {form.precision for form in artifact.variants.forms}
    for precision in way.graphs:
        if precision in there:
            return precision
    return way.graphs[-1]


@cache
def _core() -> Any:
    """The runtime, once a process and never given back.

    It gives signals a stack of its own (openvino 2026.4, SigAltStackSetup in its CPU plugin). Dropped on another thread
    than it was made on, it frees that stack and leaves it in use: the next signal with a handler, such as SIGTERM or
    the end of a child, ends the process in a segmentation fault.
    """
    return _import().Core()


def _import() -> Any:
    try:
        import openvino
    except ImportError as error:
        raise EngineError(f"OpenVINO cannot be imported ({error}); {_INSTALL}") from error
    return openvino


def _capabilities(core: Any) -> Sequence[str]:
    return core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
