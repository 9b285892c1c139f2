"""ONNX Runtime's own CUDA kernels, from the package onnxruntime-gpu."""

from ptsa_serve.artifact import Artifact
from ptsa_serve.engines import onnxruntime_gpu
from ptsa_serve.engines.base import EngineOptions
from ptsa_serve.engines.onnxruntime_gpu import Provider, ProviderEngine
from ptsa_serve.sizes import Size

__all__ = ["load", "offers"]


def _options(device: int, name: str, size: Size | None, most: int) -> dict[str, str]:
    del name, size, most
    # fp32 is fp32: TF32 keeps 10 bits of a mantissa, which the parity gate would see.
    return {"device_id": str(device), "use_tf32": "0"}


_PROVIDER = Provider("onnxruntime-cuda", "CUDAExecutionProvider", "cuda", _options, fixed_sizes=False, most=64)


def load(artifact: Artifact, options: EngineOptions) -> ProviderEngine:
    """See `EngineRow`."""
    return onnxruntime_gpu.load(_PROVIDER, artifact, options)


def offers(artifact: Artifact) -> list[EngineOptions]:
    """See `EngineRow`."""
    return onnxruntime_gpu.offers(_PROVIDER, artifact)
