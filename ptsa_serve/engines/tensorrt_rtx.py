"""TensorRT for RTX, from PyPI: plans are built on any machine and finished by the GPU that runs them.

Plans fit GPUs from Ampere on; 1.7 names 8.0, 8.6, 8.9, 12.0 and 12.1 as targets, so not Hopper (9.0).
"""

from typing import Any

from ptsa_serve.artifact import Artifact
from ptsa_serve.engines import planned
from ptsa_serve.engines.base import EngineOptions
from ptsa_serve.engines.flavour import Flavour
from ptsa_serve.engines.planned import PlanEngine

__all__ = ["FLAVOUR", "load", "offers"]


def _context(api: Any, engine: Any) -> Any:
    config = engine.create_runtime_config()
    config.set_execution_context_allocation_strategy(api.ExecutionContextAllocationStrategy.USER_MANAGED)
    # It compiles kernels at the first run, so it alone knows when its work can be captured.
    config.cuda_graph_strategy = api.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    return engine.create_execution_context(config)


FLAVOUR = Flavour(
    name="tensorrt_rtx",
    title="TensorRT for RTX",
    module="tensorrt_rtx",
    oldest=(1, 5),
    install="install it with `pip install 'ptsa-serve[tensorrt-rtx]'` (100 MB)",
    portable=True,
    captures=False,
    context=_context,
)


def load(artifact: Artifact, options: EngineOptions) -> PlanEngine:
    """See `EngineRow`."""
    return planned.load(FLAVOUR, artifact, options)


def offers(artifact: Artifact) -> list[EngineOptions]:
    """See `EngineRow`."""
    return planned.offers(FLAVOUR, artifact)
