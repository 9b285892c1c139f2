"""ONNX Runtime on an NVIDIA GPU: what its engines there share.

ONNX Runtime leaves to the CPU what a provider cannot do, all of it where the provider's libraries are missing, and says
so in its log alone. Here that is an error: a session must have its provider, and only the arithmetic of shapes, which
providers leave to the CPU on purpose, may be placed elsewhere.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ptsa_serve.artifact import Artifact
from ptsa_serve.engines.base import EngineOptions, check_batch, first_line
from ptsa_serve.engines.onnxruntime import builds, import_runtime
from ptsa_serve.errors import EngineError
from ptsa_serve.sizes import Size, Sizes
from ptsa_serve.tasks import KINDS
from ptsa_serve.variants import Variant

__all__ = ["Provider", "ProviderEngine", "load", "offers"]

_BUILD = "onnxruntime-gpu"
_INSTALL = "install it with `pip install 'ptsa-serve[gpu]'` in place of `ptsa-serve[cpu]`"

# Operators that compute shapes and indices from a batch's size: a few integers each, on the CPU by design.
_OF_SHAPES = {
    "Add", "Cast", "Concat", "Constant", "ConstantOfShape", "Div", "Equal", "Expand", "Gather", "Identity", "Less",
    "Mod", "Mul", "Range", "Reshape", "Shape", "Slice", "Squeeze", "Sub", "Unsqueeze", "Where",
}  # fmt: skip

# Shapes whose buffers on the GPU are kept.
_KEPT = 16


@dataclass(frozen=True, slots=True)
class Provider:
    """One of the runtime's execution providers.

    name: key of its engine. provider: as the runtime calls it. device: kind of memory that it works in. options: its
    own, of (device number, name of the graph's input, size of the images or None, largest batch). fixed_sizes: whether
    it takes graphs of fixed sizes alone. most: photos of one run.
    """

    name: str
    provider: str
    device: str
    options: Callable[[int, str, Size | None, int], dict[str, str]]
    fixed_sizes: bool
    most: int


@dataclass(frozen=True, slots=True)
class _Bound:
    """Buffers of one shape on the GPU, and the session's hold on them."""

    binding: Any
    pixels: Any
    maps: dict[str, Any]


class ProviderEngine:
    """A session a graph, made when first asked for. `run` may be called from threads; runs follow one another."""

    lanes = 1

    def __init__(self, artifact: Artifact, options: EngineOptions, provider: Provider) -> None:
        """Raises EngineError without the runtime, its provider or a GPU, ArtifactError for a form that is not there."""
        self.name, self._provider, self._device = provider.name, provider, options.device
        self._ort = _import(provider, options.device)
        self.version = self._ort.__version__
        self._artifact = artifact
        self._form = artifact.variants.form(options.precision, options.branches)
        self.precision, self.branches = self._form.precision, self._form.branches
        sizes = artifact.variants.sizes(self._form)
        self.sizes = Sizes(sizes.fixed) if provider.fixed_sizes else sizes
        if not self.sizes.fixed and not self.sizes.rule:
            raise EngineError(f"{artifact.folder} has no {self._form} graph of a fixed size, which {self.name} needs")
        self._kinds = {name: task.kind for name, task in artifact.manifest.task_table().items()}
        self._input = artifact.manifest.input.name
        self._lock = threading.Lock()
        self._sessions: dict[str, Any] = {}
        self._bound: dict[tuple[str, tuple[int, ...]], _Bound] = {}

    def run(
        self, batch: np.ndarray, tasks: Sequence[str] | None = None, *, alone: bool = True
    ) -> dict[str, np.ndarray]:
        """See `Engine.run`: every output is computed, those asked for are copied back."""
        del alone
        size = check_batch(batch, self.sizes)
        wanted = tuple(name for name in self._kinds if tasks is None or name in tasks)
        variant = self._artifact.variants.choose(self._form, size, wanted)
        with self._lock:
            parts = [
                self._run(variant, batch[start : start + self._provider.most], wanted)
                for start in range(0, len(batch), self._provider.most)
            ]
        return parts[0] if len(parts) == 1 else {name: np.concatenate([p[name] for p in parts]) for name in wanted}

    def close(self) -> None:
        """See `Engine.close`."""
        with self._lock:
            self._bound.clear()
            self._sessions.clear()

    def _run(self, variant: Variant, batch: np.ndarray, wanted: Sequence[str]) -> dict[str, np.ndarray]:
        if variant.path not in self._sessions:
            self._sessions[variant.path] = self._load(variant)
        session, key = self._sessions[variant.path], (variant.path, batch.shape)
        try:
            bound = self._bound.pop(key, None) or self._bind(session, variant, batch.shape)
            self._bound[key] = bound  # the last used is the last
            while len(self._bound) > _KEPT:
                del self._bound[next(iter(self._bound))]
            bound.pixels.update_inplace(np.ascontiguousarray(batch))
            session.run_with_iobinding(bound.binding)
            maps = {name: bound.maps[name].numpy() for name in wanted}
        except Exception as error:
            raise EngineError(f"{self.name} failed on {batch.shape}: {first_line(error)}") from error
        # From the GPU they come as copies; where both memories are one, as views of what the next run writes to.
        return {name: values if values.flags.owndata else values.copy() for name, values in maps.items()}

    def _bind(self, session: Any, variant: Variant, shape: tuple[int, ...]) -> _Bound:
        def new(shape: tuple[int, ...], dtype: Any) -> Any:
            return self._ort.OrtValue.ortvalue_from_shape_and_type(shape, dtype, self._provider.device, self._device)

        binding, pixels, maps = session.io_binding(), new(shape, np.uint8), {}
        binding.bind_ortvalue_input(self._input, pixels)
        for name in variant.tasks:
            dtype, axes = KINDS[self._kinds[name]]
            maps[name] = new((*shape[:3], *axes), dtype)
            binding.bind_ortvalue_output(name, maps[name])
        return _Bound(binding, pixels, maps)

    def _load(self, variant: Variant) -> Any:
        graph = self._artifact.graph(variant)
        arrays = self._artifact.weights(variant).make(graph.weights)
        options = self._ort.SessionOptions()
        if arrays:
            values = [self._ort.OrtValue.ortvalue_from_numpy(arrays[name]) for name in graph.weights]
            options.add_external_initializers(list(graph.weights), values)
        options.log_severity_level = 3
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        path = self._artifact.folder / variant.path
        try:
            own = self._provider.options(self._device, self._input, variant.size, self._provider.most)
            session = self._ort.InferenceSession(graph.data, options, providers=[(self._provider.provider, own)])
        except Exception as error:
            raise EngineError(f"{self.name} {self.version} cannot load {path} ({first_line(error)})") from error
        if self._provider.provider not in session.get_providers():
            raise EngineError(
                f"{self.name} would run {path} on the CPU: {self._provider.provider} did not start, its libraries or "
                f"the driver are missing or of another version; {_INSTALL}, or use another engine"
            )
        if misplaced := _misplaced(session, self._provider.provider):
            raise EngineError(
                f"{self.name} would run a part of {path} on the CPU: {', '.join(misplaced)}; use another precision, "
                "another version of ONNX Runtime, or another engine"
            )
        return session


def load(provider: Provider, artifact: Artifact, options: EngineOptions) -> ProviderEngine:
    """The engine of `provider`, see `EngineRow`."""
    return ProviderEngine(artifact, options, provider)


def offers(provider: Provider, artifact: Artifact) -> list[EngineOptions]:
    """See `EngineRow`: every form that it takes, where the provider and a GPU are there."""
    if _BUILD not in builds():  # importing the other takes 17 MB of every server, whatever runs its model
        return []
    try:
        _import(provider, 0)
    except EngineError:
        return []
    forms = artifact.variants.forms
    if provider.fixed_sizes:
        forms = tuple(form for form in forms if artifact.variants.sizes(form).fixed)
    return [EngineOptions(precision=form.precision, branches=form.branches) for form in forms]


def _import(provider: Provider, device: int) -> Any:
    """The runtime, once it has shown that it can put something on the GPU."""
    if not builds():
        raise EngineError(f"ONNX Runtime is not installed; {_INSTALL}")
    ort = import_runtime()
    if provider.provider not in ort.get_available_providers():
        raise EngineError(f"this ONNX Runtime {ort.__version__} was built without {provider.provider}; {_INSTALL}")
    try:
        if provider.device != "cpu":
            ort.preload_dlls()
        ort.OrtValue.ortvalue_from_shape_and_type((1,), np.uint8, provider.device, device)
    except Exception as error:
        raise EngineError(
            f"{provider.name} finds no NVIDIA GPU number {device} ({first_line(error)}); use a machine with one and "
            "its driver, or another engine"
        ) from error
    return ort


def _misplaced(session: Any, provider: str) -> list[str]:
    """Operators of a session that another provider runs, but for those of `_OF_SHAPES`."""
    others = [part for part in session.get_provider_graph_assignment_info() if part.ep_name != provider]
    return sorted({node.op_type for part in others for node in part.get_nodes()} - _OF_SHAPES)
