"""One GPU through NVIDIA's own binding of the CUDA runtime: memory, a stream, captured work. Used by engines on plans.

Addresses and streams are whole numbers, as TensorRT takes them. Every failure is an EngineError.
"""

import ctypes
import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from ptsa_serve.errors import EngineError

__all__ = ["Cuda"]

_INSTALL = "install it with `pip install 'cuda-bindings>=12.8,<14'`"


class Cuda:
    """The GPU number `device`; owns what it hands out until `close`. Calls may come from any one thread at a time."""

    def __init__(self, device: int = 0) -> None:
        """Raises EngineError without the binding, a driver, or such a GPU."""
        try:
            self._runtime: Any = importlib.import_module("cuda.bindings.runtime")
        except ImportError as error:
            raise EngineError(f"the CUDA binding cannot be imported ({error}); {_INSTALL}") from error
        self._device = device
        try:
            count = self._call("cudaGetDeviceCount")
        except EngineError as error:
            raise EngineError(
                f"there is no NVIDIA GPU to run on ({error}); use a machine with one and its driver, or another engine"
            ) from error
        if not 0 <= device < count:
            raise EngineError(f"there is no GPU number {device}; this machine has {count}, counted from 0")
        facts = self._call("cudaGetDeviceProperties", device)
        self.name = facts.name.decode().rstrip("\0")
        self.compute_capability = f"{facts.major}.{facts.minor}"
        self._memory: list[int] = []
        self._pinned: list[int] = []
        self._graphs: list[Any] = []
        self.use()
        self._stream = self._call("cudaStreamCreateWithFlags", self._runtime.cudaStreamNonBlocking)
        self.stream = int(self._stream)

    def use(self) -> None:
        """Make this GPU the calling thread's own: CUDA keeps that by thread."""
        self._call("cudaSetDevice", self._device)

    def memory(self, length: int) -> int:
        """The address of `length` new bytes on the GPU, aligned to 256."""
        self._memory.append(int(self._call("cudaMalloc", max(length, 1))))
        return self._memory[-1]

    def pinned(self, length: int) -> np.ndarray:
        """`length` new bytes of the host, uint8, that the GPU reads and writes by itself."""
        address = int(self._call("cudaHostAlloc", max(length, 1), self._runtime.cudaHostAllocDefault))
        self._pinned.append(address)
        return np.ctypeslib.as_array((ctypes.c_uint8 * length).from_address(address))

    def upload(self, address: int, data: np.ndarray) -> None:
        """Begin to copy pinned `data` to the GPU."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", address, data.ctypes.data, data.nbytes, kind, self._stream)

    def download(self, data: np.ndarray, address: int) -> None:
        """Begin to copy from the GPU into pinned `data`."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", data.ctypes.data, address, data.nbytes, kind, self._stream)

    def wait(self) -> None:
        """Until all that was begun is done."""
        self._call("cudaStreamSynchronize", self._stream)

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """What `work` puts on the stream, as one graph that is launched by a call of the result.

        Raises EngineError where `work` does what cannot be captured; the stream is usable afterwards.
        """
        runtime = self._runtime
        self._call(
            "cudaStreamBeginCapture", self._stream, runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        )
        try:
            work()
        except EngineError:
            runtime.cudaStreamEndCapture(self._stream)
            runtime.cudaGetLastError()
            raise
        captured = self._call("cudaStreamEndCapture", self._stream)
        graph = self._call("cudaGraphInstantiate", captured, 0)
        self._call("cudaGraphDestroy", captured)
        self._graphs.append(graph)
        return lambda: self._call("cudaGraphLaunch", graph, self._stream)

    def close(self) -> None:
        """Give everything back."""
        self.use()
        self.wait()
        for graph in self._graphs:
            self._call("cudaGraphExecDestroy", graph)
        for address in self._pinned:
            self._call("cudaFreeHost", address)
        for address in self._memory:
            self._call("cudaFree", address)
        self._graphs, self._pinned, self._memory = [], [], []
        self._call("cudaStreamDestroy", self._stream)

    def _call(self, name: str, *arguments: Any) -> Any:
        """The result of a function of the CUDA runtime, which answers (error, result...)."""
        error, *results = getattr(self._runtime, name)(*arguments)
        if error != self._runtime.cudaError_t.cudaSuccess:
            _, text = self._runtime.cudaGetErrorString(error)
            raise EngineError(f"{name}: {text.decode()}")
        return results[0] if results else None
