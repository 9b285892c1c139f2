"""TensorRT inside ONNX Runtime (onnxruntime-gpu and NVIDIA's libraries): builds at the first run, and keeps that.

Minutes a graph, once a machine: what it built lies in the user's cache and is checked by the runtime itself.
"""

from ptsa_serve.artifact import Artifact
from ptsa_serve.cache import cache_folder
from ptsa_serve.engines import onnxruntime_gpu
from ptsa_serve.engines.base import EngineOptions
from ptsa_serve.engines.onnxruntime_gpu import Provider, ProviderEngine
from ptsa_serve.sizes import Size

__all__ = ["load", "offers"]

# Photos of one run: a profile must name its largest batch, and memory on the GPU follows it.
_MOST = 8


def _options(device: int, name: str, size: Size | None, most: int) -> dict[str, str]:
    assert size is not None
    height, width = size
    kept = cache_folder() / "onnxruntime-tensorrt"
    kept.mkdir(parents=True, exist_ok=True)
    # Without a range of batches it would build again for every new one.
    low, high = (f"{name}:{batch}x{height}x{width}x3" for batch in (1, most))
    return {
        "device_id": str(device),
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(kept),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(kept),
        "trt_profile_min_shapes": low,
        "trt_profile_opt_shapes": low,
        "trt_profile_max_shapes": high,
    }


_PROVIDER = Provider(
    "onnxruntime-tensorrt", "TensorrtExecutionProvider", "cuda", _options, fixed_sizes=True, most=_MOST
)


def load(artifact: Artifact, options: EngineOptions) -> ProviderEngine:
    """See `EngineRow`."""
    return onnxruntime_gpu.load(_PROVIDER, artifact, options)


def offers(artifact: Artifact) -> list[EngineOptions]:
    """See `EngineRow`."""
    return onnxruntime_gpu.offers(_PROVIDER, artifact)
