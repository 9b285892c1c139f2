"""One ONNX graph to one plan, by a runtime with TensorRT's API.

Networks are strongly typed: numbers have the precision that the graph gives them, and no option changes that.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from export.errors import ExportError
from ptsa_serve.engines.flavour import Imported
from ptsa_serve.files import replace_file
from ptsa_serve.graphs import Graph

__all__ = ["BuildOptions", "build", "parse"]

Report = Callable[[str], None]
Shape = tuple[int, int, int]

_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """workspace_mib: most MiB that a layer may take for itself; 0: as much as the runtime likes. level: 0 to 5, how
    long it looks for fast kernels (3 is TensorRT's own). tf32: fp32 products with the 10-bit mantissa of TF32, faster.
    """

    workspace_mib: int = 0
    level: int = 3
    tf32: bool = False


def parse(runtime: Imported, graph: Graph, weights: Mapping[str, np.ndarray], name: str) -> tuple[Any, Any]:
    """The builder and the network of `graph`, whose large tensors are `weights`; `name` is the graph's, for messages.

    The arrays must live as long as the network. Raises ExportError, naming the operator, for a graph that the runtime
    cannot take.
    """
    api = runtime.api
    builder = api.Builder(runtime.log)
    network = builder.create_network(1 << int(api.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = api.OnnxParser(network, runtime.log)
    parsed = parser.load_model_proto(graph.data)
    for key in graph.weights:
        parsed = parsed and parser.load_initializer(key, weights[key].ctypes.data, weights[key].nbytes)
    if not (parsed and parser.parse_model_proto()):
        reasons = [_reason(parser.get_error(index)) for index in range(parser.num_errors)]
        text = "; ".join(reasons) or runtime.complaint()
        runtime.log.errors.clear()
        raise ExportError(f"{runtime.title} cannot take {name}: {text}; use another precision, or another engine")
    return builder, network


def _reason(error: Any) -> str:
    """What a parser's error says, the operator first."""
    said = " ".join(error.desc().splitlines()[:2])[:300]
    where = f"operator {error.node_operator()}" if error.node_operator() else "the file"
    node = f" (node {error.node_name()})" if error.node_name() else ""
    # "false" is all that the parser says of an operator that it does not know.
    return f"{where}{node} is not supported" if said in ("", "false") else f"{where}{node} is refused, {said}"


def build(
    runtime: Imported,
    graph: Graph,
    weights: Mapping[str, np.ndarray],
    shapes: Sequence[Shape],
    options: BuildOptions,
    *,
    name: str,
    input_name: str,
    timing_cache: Path | None,
    report: Report,
) -> bytes:
    """A plan of `graph` with a profile for each (N, H, W) of `shapes`, in their order (`PlanRecord.shapes`).

    timing_cache: a file of measured kernels to read and to add to, of this runtime, version and GPU; None: none.
    Raises ExportError for a graph that the runtime cannot take, or a build that fails.
    """
    builder, network = parse(runtime, graph, weights, name)
    config = _config(runtime, builder, shapes, options, input_name)
    cache = None
    if timing_cache is not None:
        cache = config.create_timing_cache(timing_cache.read_bytes() if timing_cache.is_file() else b"")
        config.set_timing_cache(cache, ignore_mismatch=False)
    monitor = _monitor(runtime.api, lambda percent: report(f"{name}: {percent} % built"))
    config.progress_monitor = monitor
    plan = builder.build_serialized_network(network, config)
    if monitor.stopped:
        raise KeyboardInterrupt
    if plan is None:
        reason = runtime.complaint()
        advice = (
            "give it a larger --workspace, or smaller --batch" if "OutOfMemory" in reason else "try another version"
        )
        raise ExportError(f"{runtime.title} cannot build a plan of {name}: {reason}; {advice}")
    if cache is not None and timing_cache is not None:
        replace_file(timing_cache, bytes(cache.serialize()))
    return bytes(plan)


def _config(runtime: Imported, builder: Any, shapes: Sequence[Shape], options: BuildOptions, input_name: str) -> Any:
    api = runtime.api
    config = builder.create_builder_config()
    config.builder_optimization_level = options.level
    if options.workspace_mib:
        config.set_memory_pool_limit(api.MemoryPoolType.WORKSPACE, options.workspace_mib * _MIB)
    # On unless it is cleared: products of fp32 would not be fp32.
    change = config.set_flag if options.tf32 else config.clear_flag
    change(api.BuilderFlag.TF32)
    for shape in shapes:
        profile = builder.create_optimization_profile()
        smaller = max((batch for batch, *size in shapes if size == list(shape[1:]) and batch < shape[0]), default=0)
        profile.set_shape(input_name, (smaller + 1, *shape[1:], 3), (*shape, 3), (*shape, 3))
        if config.add_optimization_profile(profile) < 0:
            raise ExportError(f"{runtime.title} refuses a profile of {shape}: {runtime.complaint()}")
    return config


def _monitor(api: Any, report: Callable[[int], None]) -> Any:
    class Monitor(api.IProgressMonitor):
        """Tells the steps of the whole build, which have steps of their own, as they end; Ctrl-C ends the build."""

        def __init__(self) -> None:
            api.IProgressMonitor.__init__(self)
            self._steps: dict[str, int] = {}
            self.stopped = False

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None:
                self._steps[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            try:
                if phase_name in self._steps:
                    report(round(100 * (step + 1) / self._steps[phase_name]))
            except KeyboardInterrupt:
                self.stopped = True  # raised here it would be lost
            return not self.stopped

        def phase_finish(self, phase_name: str) -> None:
            self._steps.pop(phase_name, None)

    return Monitor()
