"""A CUDA runtime and a TensorRT that compute on the CPU, as late as real ones may.

They hold what a stream was given until somebody waits for it, so a map that is read too early, a buffer that is used
twice or a graph of another shape shows. A test holds their names against the real runtimes.
"""

import ctypes
import json
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from ptsa_serve.artifact import Artifact
from ptsa_serve.engines import EngineOptions, load_engine
from ptsa_serve.tasks import KINDS, TASKS

VERSION = "11.4.0"
GPU = ("NVIDIA Test", "9.0")
SIZE = (48, 64)


class FakeCuda(ModuleType):
    """`cuda.bindings.runtime`: memory of the host, one stream, work done when somebody waits."""

    cudaStreamNonBlocking = cudaHostAllocDefault = 0
    cudaError_t = SimpleNamespace(cudaSuccess=0)
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

    def __init__(self) -> None:
        super().__init__("cuda.bindings.runtime")
        self.devices, self.capturable = 1, True
        self.queue: list[Callable[[], None]] = []
        self.captured: list[Callable[[], None]] | None = None
        self.live: dict[int, np.ndarray] = {}
        self.launched = self.allocated = 0

    def enqueue(self, work: Callable[[], None]) -> None:
        (self.queue if self.captured is None else self.captured).append(work)

    def cudaGetDeviceCount(self):
        return (0, self.devices) if self.devices else (100, None)

    def cudaGetErrorString(self, error: int):
        return 0, f"error {error}".encode()

    def cudaGetDeviceProperties(self, device: int):
        return 0, SimpleNamespace(name=GPU[0].encode() + b"\0\0", major=9, minor=0)

    def cudaMalloc(self, length: int):
        block = np.full(length, 0xA5, np.uint8)
        self.live[block.ctypes.data] = block
        self.allocated += 1
        return 0, block.ctypes.data

    def cudaHostAlloc(self, length: int, flags: int):
        return self.cudaMalloc(length)

    def cudaFree(self, address: int):
        del self.live[address]
        return (0,)

    cudaFreeHost = cudaFree

    def cudaMemcpyAsync(self, target: int, source: int, length: int, kind: int, stream: int):
        self.enqueue(lambda: ctypes.memmove(target, source, length) and None)
        return (0,)

    def cudaStreamSynchronize(self, stream: int):
        while self.queue:
            self.queue.pop(0)()
        return (0,)

    def cudaStreamBeginCapture(self, stream: int, mode: int):
        self.captured = []
        return (0,)

    def cudaStreamEndCapture(self, stream: int):
        work, self.captured = self.captured, None
        return (0, work) if self.capturable else (901, None)

    def cudaGraphInstantiate(self, graph: list, flags: int):
        return 0, tuple(graph)

    def cudaGraphLaunch(self, graph: tuple, stream: int):
        self.launched += 1
        self.queue.extend(graph)
        return (0,)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("cudaStreamCreate"):
            return lambda *_: (0, 7)
        if name.startswith(("cudaSet", "cudaGraph", "cudaStreamDestroy", "cudaGetLastError")):
            return lambda *_: (0,)
        raise AttributeError(name)


class FakeTensorRT(ModuleType):
    """`tensorrt`: a plan is JSON that names a graph, which ONNX Runtime runs on the CPU."""

    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="ours")
    nptype = staticmethod(lambda dtype: dtype)

    class ILogger:
        Severity = SimpleNamespace(ERROR=1)

    def __init__(self, cuda: FakeCuda, artifact: Artifact, version: str = VERSION) -> None:
        super().__init__("tensorrt")
        self.__version__ = version
        fake = self

        class Runtime:
            def __init__(self, log: Any) -> None:
                self.log = log

            def deserialize_cuda_engine(self, data: bytes) -> Any:
                try:
                    return FakeEngine(cuda, artifact, json.loads(data), fake)
                except ValueError:
                    self.log.log(1, "magic tag is wrong")
                    return None

        self.Runtime = Runtime
        self.contexts = 0


class FakeEngine:
    def __init__(self, cuda: FakeCuda, artifact: Artifact, plan: dict[str, Any], owner: FakeTensorRT) -> None:
        self.cuda, self.tasks, self.shapes, self.owner = cuda, plan["tasks"], plan["shapes"], owner
        self.cpu = load_engine("onnxruntime", artifact, EngineOptions(threads=1))
        self.num_io_tensors = 1 + len(self.tasks)

    def get_tensor_name(self, index: int) -> str:
        return ["image", *self.tasks][index]

    def get_tensor_dtype(self, name: str) -> str:
        return KINDS[TASKS[name].kind][0]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1, *SIZE, *KINDS[TASKS[name].kind][1])

    def get_device_memory_size_for_profile_v2(self, index: int) -> int:
        return 1000 * (index + 1)

    def create_execution_context(self, strategy: str) -> "FakeContext":
        assert strategy == "ours"
        self.owner.contexts += 1
        return FakeContext(self)


class FakeContext:
    def __init__(self, engine: FakeEngine) -> None:
        self.engine, self.addresses = engine, {}
        self.profile = self.shape = None

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self.profile = index
        return index < len(self.engine.shapes)

    def set_device_memory(self, address: int, length: int) -> None:
        # The real one is asked for as much as its largest profile needs.
        assert len(self.engine.cuda.live[address]) >= length >= 1000 * len(self.engine.shapes)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert name == "image"
        most, *size = self.engine.shapes[self.profile]
        smaller = max((batch for batch, *other in self.engine.shapes if other == size and batch < most), default=0)
        self.shape = shape
        return list(shape[1:3]) == size and smaller < shape[0] <= most

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        shape = self.shape
        assert shape
        assert set(self.addresses) == {"image", *self.engine.tasks}

        def work() -> None:
            pixels = _at(self.addresses["image"], int(np.prod(shape))).reshape(shape)
            for name, values in self.engine.cpu.run(pixels.copy(), self.engine.tasks).items():
                _at(self.addresses[name], values.nbytes)[:] = np.ascontiguousarray(values).view(np.uint8).reshape(-1)

        self.engine.cuda.enqueue(work)
        return True


def _at(address: int, length: int) -> np.ndarray:
    return np.ctypeslib.as_array((ctypes.c_uint8 * length).from_address(address))
