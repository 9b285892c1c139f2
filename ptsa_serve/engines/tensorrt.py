"""TensorRT on an NVIDIA GPU, from plans that `python -m export tensorrt` built there. Its wheels come from NVIDIA."""

from typing import Any

from ptsa_serve.artifact import Artifact
from ptsa_serve.engines import planned
from ptsa_serve.engines.base import EngineOptions
from ptsa_serve.engines.flavour import Flavour
from ptsa_serve.engines.planned import PlanEngine

__all__ = ["FLAVOUR", "load", "offers"]


def _context(api: Any, engine: Any) -> Any:
    return engine.create_execution_context(api.ExecutionContextAllocationStrategy.USER_MANAGED)


FLAVOUR = Flavour(
    name="tensorrt",
    title="TensorRT",
    module="tensorrt",
    # The first whose parser takes weights by name (`load_initializer`).
    oldest=(10, 13),
    install="install it with `pip install 'ptsa-serve[tensorrt]'`; its libraries come from NVIDIA's own package index",
    portable=False,
    captures=True,
    context=_context,
)


def load(artifact: Artifact, options: EngineOptions) -> PlanEngine:
    """See `EngineRow`."""
    return planned.load(FLAVOUR, artifact, options)


def offers(artifact: Artifact) -> list[EngineOptions]:
    """See `EngineRow`."""
    return planned.offers(FLAVOUR, artifact)
