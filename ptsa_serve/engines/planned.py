"""What the engines on plans share: which plans may run here, and running them.

A plan holds a profile for each (N, H, W) that it was built for, which takes batches of up to N. Buffers on both sides
and the scratch memory are allocated once, for the largest of them: runs follow one another. Each number of photos that
comes has an execution context and a CUDA graph of its own, over that memory (TensorRT's advice for captured graphs).
"""

import logging
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ptsa_serve.artifact import Artifact
from ptsa_serve.engines.base import EngineOptions, check_batch
from ptsa_serve.engines.cuda import Cuda
from ptsa_serve.engines.flavour import Flavour, Imported
from ptsa_serve.errors import EngineError
from ptsa_serve.manifest import FileRecord
from ptsa_serve.plans import PlanRecord
from ptsa_serve.variants import Form, Variant, Variants

__all__ = ["PlanEngine", "load", "offers"]

log = logging.getLogger(__name__)

Shape = tuple[int, int, int]  # N, H, W


@dataclass(frozen=True, slots=True)
class _Output:
    """An output of a plan. address: on the GPU. host: pinned, uint8, as long. cell: values of a pixel, () or (C,)."""

    address: int
    host: np.ndarray
    dtype: np.dtype
    cell: tuple[int, ...]

    def view(self, shape: Shape) -> np.ndarray:
        """The host's bytes as the map of a run of `shape`."""
        whole = (*shape, *self.cell)
        return self.host[: math.prod(whole) * self.dtype.itemsize].view(self.dtype).reshape(whole)


@dataclass(frozen=True, slots=True)
class _Plan:
    """A plan in memory. shapes: of its profiles."""

    engine: Any
    shapes: tuple[Shape, ...]
    outputs: tuple[str, ...]


class PlanEngine:
    """The plans of one form on one GPU. `run` may be called from several threads; runs follow one another."""

    lanes = 1

    def __init__(self, artifact: Artifact, plans: Variants, form: Form, runtime: Imported, cuda: Cuda) -> None:
        """`plans`: those that may run here, see `_plans`. Raises EngineError for a plan that the runtime refuses."""
        self.name, self.version = runtime.flavour.name, runtime.version
        self.precision, self.branches = form.precision, form.branches
        self.sizes = plans.sizes(form)
        self._form, self._variants, self._runtime, self._cuda = form, plans, runtime, cuda
        self._tasks = tuple(artifact.manifest.task_table())
        self._input = artifact.manifest.input.name
        self._lock = threading.Lock()
        self._deserializer = runtime.api.Runtime(runtime.log)  # must outlive what it made
        records = {record.path: record for record in artifact.manifest.files}
        self._plans = {
            path: self._load(artifact, records[path])
            for path in dict.fromkeys(plan.path for plan in plans.all if plan.form == form)
        }
        self._allocate()
        self._launches: dict[tuple[str, Shape], Callable[[], None]] = {}

    def run(
        self, batch: np.ndarray, tasks: Sequence[str] | None = None, *, alone: bool = True
    ) -> dict[str, np.ndarray]:
        """See `Engine.run`. A batch beyond the largest profile is run in parts."""
        del alone
        size = check_batch(batch, self.sizes)
        wanted = self._tasks if tasks is None else tuple(task for task in self._tasks if task in tasks)
        path = self._variants.choose(self._form, size, wanted).path
        parts: list[dict[str, np.ndarray]] = []
        with self._lock:
            self._cuda.use()
            done = 0
            while done < len(batch):
                profile = _profile(self._plans[path].shapes, size, len(batch) - done)
                part = batch[done : done + self._plans[path].shapes[profile][0]]
                parts.append(self._run(path, profile, part, wanted))
                done += len(part)
        return parts[0] if len(parts) == 1 else {name: np.concatenate([p[name] for p in parts]) for name in wanted}

    def close(self) -> None:
        """See `Engine.close`."""
        with self._lock:
            self._launches.clear()
            self._plans.clear()
            self._cuda.close()

    def _run(self, path: str, profile: int, part: np.ndarray, wanted: Sequence[str]) -> dict[str, np.ndarray]:
        shape = (len(part), part.shape[1], part.shape[2])
        staged = self._staging[: part.nbytes]
        np.copyto(staged.reshape(part.shape), part)
        self._cuda.upload(self._pixels, staged)
        launch = self._launches.get((path, shape))
        if launch is None:
            launch = self._launches[path, shape] = self._prepare(self._plans[path], profile, shape)
        launch()
        for name in wanted:
            self._cuda.download(self._outputs[name].view(shape), self._outputs[name].address)
        self._cuda.wait()
        # The pinned memory belongs to the next run.
        return {name: self._outputs[name].view(shape).copy() for name in wanted}

    def _load(self, artifact: Artifact, record: FileRecord) -> _Plan:
        assert record.plan is not None
        path = artifact.folder / record.path
        try:
            engine = self._deserializer.deserialize_cuda_engine(path.read_bytes())
        except OSError as error:
            raise EngineError(f"{path} cannot be read ({error.strerror}); {_build(artifact, self.name)}") from None
        if engine is None:
            reason = self._runtime.complaint()
            raise EngineError(f"{self._runtime.title} refuses {path} ({reason}); {_build(artifact, self.name)}")
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        return _Plan(engine, record.plan.shapes, tuple(name for name in names if name != self._input))

    def _allocate(self) -> None:
        """The memory that all runs share."""
        shapes = [shape for plan in self._plans.values() for shape in plan.shapes]
        pixels = max(math.prod(shape) for shape in shapes)
        self._staging = self._cuda.pinned(3 * pixels)
        self._pixels = self._cuda.memory(3 * pixels)
        self._scratch_bytes = max(
            plan.engine.get_device_memory_size_for_profile_v2(index)
            for plan in self._plans.values()
            for index in range(len(plan.shapes))
        )
        self._scratch = self._cuda.memory(self._scratch_bytes)
        self._outputs: dict[str, _Output] = {}
        for plan in self._plans.values():
            for name in plan.outputs:
                if name not in self._outputs:
                    self._outputs[name] = self._output(plan.engine, name, pixels)

    def _output(self, engine: Any, name: str, pixels: int) -> _Output:
        dtype = np.dtype(self._runtime.api.nptype(engine.get_tensor_dtype(name)))
        # (N, H, W) or (N, H, W, C): what lies behind the pixels is the same at every size.
        cell = tuple(engine.get_tensor_shape(name))[3:]
        length = pixels * math.prod(cell) * dtype.itemsize
        return _Output(self._cuda.memory(length), self._cuda.pinned(length), dtype, cell)

    def _prepare(self, plan: _Plan, profile: int, shape: Shape) -> Callable[[], None]:
        """What runs `plan` on a batch of `shape`, from pixels on the GPU to maps on it; runs it once."""
        context = self._runtime.flavour.context(self._runtime.api, plan.engine)
        if context is None:
            raise EngineError(f"{self._runtime.title} cannot prepare a run: {self._runtime.complaint()}")
        self._agree(context.set_optimization_profile_async(profile, self._cuda.stream))
        context.set_device_memory(self._scratch, self._scratch_bytes)
        self._agree(context.set_input_shape(self._input, (*shape, 3)))
        addresses = {self._input: self._pixels, **{name: self._outputs[name].address for name in plan.outputs}}
        for name, address in addresses.items():
            self._agree(context.set_tensor_address(name, address))

        def enqueue() -> None:
            self._agree(context.execute_async_v3(self._cuda.stream))

        # The first run may allocate and compile, which no capture takes.
        enqueue()
        self._cuda.wait()
        if not self._runtime.flavour.captures:
            return enqueue
        try:
            return self._cuda.capture(enqueue)
        except EngineError as error:
            log.warning("%s runs without a CUDA graph: %s", self._runtime.title, error)
            return enqueue

    def _agree(self, agreed: bool) -> None:
        if not agreed:
            raise EngineError(f"{self._runtime.title} failed: {self._runtime.complaint()}")


def load(flavour: Flavour, artifact: Artifact, options: EngineOptions) -> PlanEngine:
    """The engine of `flavour`, see `EngineRow`.

    Raises EngineError without the runtime, a GPU, or a plan for both; it says how to build one.
    """
    runtime = flavour.load()
    cuda = Cuda(options.device)
    try:
        plans = _plans(artifact, runtime, cuda)
        if not plans.all:
            raise EngineError(f"{_missing(artifact, runtime, cuda)}; {_build(artifact, flavour.name)}")
        return PlanEngine(artifact, plans, plans.form(options.precision, options.branches), runtime, cuda)
    except BaseException:
        cuda.close()
        raise


def offers(flavour: Flavour, artifact: Artifact) -> list[EngineOptions]:
    """See `EngineRow`: the forms that there are plans of for this runtime on the first GPU."""
    if not _built(artifact, flavour.name):
        return []
    try:
        runtime = flavour.load()
        cuda = Cuda()
    except EngineError:
        return []
    forms = _plans(artifact, runtime, cuda).forms
    cuda.close()
    return [EngineOptions(precision=form.precision, branches=form.branches) for form in forms]


def _built(artifact: Artifact, runtime: str) -> list[FileRecord]:
    return [record for record in artifact.manifest.files if record.plan and record.plan.runtime == runtime]


def _plans(artifact: Artifact, runtime: Imported, cuda: Cuda) -> Variants:
    """The plans that this runtime on this GPU takes, as graphs: one for each size. Those of fewer tasks than all are
    there for sizes that also have one of all.
    """
    current = {record.sha256 for record in artifact.manifest.files}
    all_tasks = tuple(artifact.manifest.task_table())
    found = [
        Variant(record.path, "", size, _form(record), record.tasks or all_tasks)
        for record in _built(artifact, runtime.flavour.name)
        if (plan := record.plan) and _fits(plan, runtime, cuda)
        if {plan.graph_sha256, plan.weights_sha256} <= current
        for size in dict.fromkeys(shape[1:] for shape in plan.shapes)
    ]
    whole = {(plan.form, plan.size) for plan in found if set(plan.tasks) == set(all_tasks)}
    return Variants(tuple(plan for plan in found if (plan.form, plan.size) in whole))


def _form(record: FileRecord) -> Form:
    return Form(record.precision or "fp32", record.branches or "folded")


def _fits(plan: PlanRecord, runtime: Imported, cuda: Cuda) -> bool:
    here = (cuda.name, cuda.compute_capability)
    return plan.runtime_version == runtime.version and (plan.gpu is None or (plan.gpu, plan.compute_capability) == here)


def _missing(artifact: Artifact, runtime: Imported, cuda: Cuda) -> str:
    plans = [record.plan for record in _built(artifact, runtime.flavour.name) if record.plan]
    if not plans:
        return f"{artifact.folder} has no plan for {runtime.flavour.title}"
    if any(_fits(plan, runtime, cuda) for plan in plans):
        return f"the plans of {artifact.folder} are of other graphs or weights than it has, or of a part of its tasks"
    found = ", ".join(dict.fromkeys(f"{plan.runtime_version} for {plan.target()}" for plan in plans))
    here = f"{runtime.version} on {cuda.name} ({cuda.compute_capability})"
    return f"the plans of {artifact.folder} are of {runtime.flavour.title} {found}, and here is {here}"


def _build(artifact: Artifact, runtime: str) -> str:
    return f"build one here with `python -m export tensorrt {artifact.folder} --runtime {runtime}`"


def _profile(shapes: Sequence[Shape], size: tuple[int, int], photos: int) -> int:
    """The index of the smallest profile of `size` that holds so many photos, or else of the largest."""
    own: Mapping[int, int] = {shape[0]: index for index, shape in enumerate(shapes) if shape[1:] == size}
    return own[min((batch for batch in own if batch >= photos), default=max(own))]
