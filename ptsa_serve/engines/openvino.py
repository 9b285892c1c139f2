"""OpenVINO on the CPU: fp32, and bf16 where the CPU has it, from the fp32 graphs; int8 and fp16 from graphs of theirs.

A graph is compiled for each size, set of tasks and way to run: on all threads for a photo that is alone, or in streams
of a core each that go on side by side. The large weights of all graphs are one copy, but what a compiled graph packs of
them for its kernels is its own: 90 MB a graph of the shipped model in int8, 140 in fp32. So graphs are compiled when
they are first asked for, those of long ago are dropped, and those that do not run give back what lies between their
layers. Where memory is preferred there is one run at a time, so graphs of the first kind alone, and fewer of them.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from ptsa_serve.artifact import Artifact
from ptsa_serve.cores import usable_cores
from ptsa_serve.engines.base import EngineOptions, Prefer, check_batch, first_line
from ptsa_serve.engines.kept import Kept
from ptsa_serve.errors import EngineError
from ptsa_serve.graphs import Graph, with_inputs
from ptsa_serve.heap import give_back
from ptsa_serve.sizes import Size
from ptsa_serve.variants import Precision

__all__ = ["OpenVinoEngine", "load", "offers"]

_INSTALL = "install it with `pip install 'ptsa-serve[openvino]'`"
# Compiled graphs that are kept: of five sizes, each way, and two of fewer tasks. Another takes 2 s to compile, so with
# fewer than the model has sizes nearly every photo would wait for that.
_KEPT: dict[Prefer, int] = {"speed": 12, "memory": 5}

_TO_PLANES, _TO_PIXELS = np.array([0, 3, 1, 2]), np.array([0, 2, 3, 1])

Key = tuple[Size, tuple[str, ...], bool]  # size, tasks, alone


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


@dataclass(slots=True)
class _Compiled:
    """A compiled graph. running: runs that go on. warm: whether it holds memory for what lies between layers."""

    model: Any
    running: int = 0
    warm: bool = False


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
        # Between layers of 8 bits, 16 are as good as 32.
        self._hint = "bf16" if self.precision == "int8" and "BF16" in found else self._way.hint
        self._artifact = artifact
        self._form = artifact.variants.form(_graph(artifact, self._way), options.branches)
        self.branches = self._form.branches
        self.sizes = artifact.variants.sizes(self._form)
        self._threads = options.threads or usable_cores()
        self._prefer = options.prefer
        self.lanes = 1 if self._prefer == "memory" else self._threads
        self._input = artifact.manifest.input.name
        self._tasks = tuple(artifact.manifest.task_table())
        self._weights: dict[str, np.ndarray] = {}
        self._graphs: Kept[Key, _Compiled] = Kept(lambda key: _Compiled(self._compile(key)), _KEPT[self._prefer])
        self._counting = threading.Lock()

    def run(
        self, batch: np.ndarray, tasks: Sequence[str] | None = None, *, alone: bool = True
    ) -> dict[str, np.ndarray]:
        """See `Engine.run`."""
        size = check_batch(batch, self.sizes)
        wanted = self._tasks if tasks is None else tuple(task for task in self._tasks if task in tasks)
        alone = alone or self.lanes == 1
        # Compiling takes seconds: the first photos side by side run as if they were alone.
        compiled = self._graphs.get((size, wanted, alone), meanwhile=None if alone else (size, wanted, True))
        with self._running(compiled):
            try:
                # A request of its own: one cannot be used by two threads.
                maps = compiled.model.create_infer_request().infer({self._input: batch}, share_inputs=True)
                return {name: maps[name] for name in wanted}
            except Exception as error:
                raise EngineError(f"OpenVINO failed on {batch.shape}: {first_line(error)}") from error

    def close(self) -> None:
        """See `Engine.close`."""
        self._graphs.close()
        self._weights.clear()

    @contextmanager
    def _running(self, compiled: _Compiled) -> Iterator[None]:
        """Inside, `compiled` holds memory for what lies between its layers, and those that do not run hold none."""
        with self._counting:
            compiled.running += 1
            self._release()
            compiled.warm = True
        try:
            yield
        finally:
            with self._counting:
                compiled.running -= 1
                if self._prefer == "memory":
                    self._release()
                    give_back()

    def _release(self) -> None:
        for kept in self._graphs.all():
            if kept.warm and not kept.running:
                kept.model.release_memory()
                kept.warm = False

    def _compile(self, key: Key) -> Any:
        size, tasks, alone = key
        variant = self._artifact.variants.choose(self._form, size, tasks)
        graph = self._artifact.graph(variant, tasks)
        missing = [name for name in graph.weights if name not in self._weights]
        self._weights |= self._artifact.weights(variant).make(missing)
        config = {
            "INFERENCE_NUM_THREADS": self._threads,
            "NUM_STREAMS": 1 if alone else self.lanes,
            "INFERENCE_PRECISION_HINT": self._hint,
            # Which cores it may use is the operator's business: two servers would pin themselves to the same.
            "ENABLE_CPU_PINNING": False,
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
                parameter.output(0).replace(constant.output(0))
                model.remove_parameter(parameter)
        _scale_planes(self._ov, model)
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


def _scale_planes(ov: Any, model: Any) -> None:
    """Let planes, not pixels, be scaled, and the best be chosen among planes, in place.

    The runtime (2026.4) has no fast kernel for Interpolate over the middle axes, nor for TopK over the last: scaling
    class maps and choosing among them took a third of the whole model, between planes it takes a twentieth.
    """
    ops = ov.opset13
    for node in model.get_ordered_ops():
        if scales := _middle_scales(node):
            how = node.get_attributes()
            planes = ops.transpose(node.input_value(0), _TO_PLANES)
            scaled = ops.interpolate(
                planes, np.array(scales, np.float32), how["mode"], "scales", axes=np.array([2, 3]),
                coordinate_transformation_mode=how["coordinate_transformation_mode"], nearest_mode=how["nearest_mode"],
            )  # fmt: skip
            for user in list(node.output(0).get_target_inputs()):
                if not _chosen_among_planes(ops, user.get_node(), scaled):
                    user.replace_source_output(ops.transpose(scaled, _TO_PIXELS).output(0))
    model.validate_nodes_and_infer_types()


def _middle_scales(node: Any) -> list[float]:
    """The factors of the axes H and W of an Interpolate of (N, H, W, C); empty for other operators."""
    if node.get_type_name() != "Interpolate" or node.input_value(1).get_node().get_type_name() != "Constant":
        return []
    scales = [float(scale) for scale in node.input_value(1).get_node().data]
    return scales[1:3] if len(scales) == 4 and scales[0] == scales[3] == 1 != scales[1] else []


def _chosen_among_planes(ops: Any, top: Any, planes: Any) -> bool:
    """Let what reads the indices of `top`, a TopK of one over the last axis, read those of one over `planes`; whether
    it is such an operator.
    """
    if top.get_type_name() != "TopK" or (how := top.get_attributes())["axis"] != 3:
        return False
    best = ops.topk(planes, 1, 1, how["mode"], how["sort"], how["index_element_type"])
    indices = ops.transpose(best.output(1), _TO_PIXELS)
    for reader in list(top.output(1).get_target_inputs()):
        reader.replace_source_output(indices.output(0))
    return True


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
