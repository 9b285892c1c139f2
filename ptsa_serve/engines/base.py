"""What the predictor knows about whatever runs the model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from ptsa_serve.errors import EngineError
from ptsa_serve.sizes import Sizes
from ptsa_serve.variants import Branches, Precision

__all__ = ["Engine", "EngineOptions", "Prefer", "check_batch", "first_line"]

Prefer = Literal["speed", "memory"]


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How an engine is to run a model.

    threads: cores that it may use in all; 0: those this process may use. device: number of the GPU, for engines on
    one. precision: None = that of the fp32 graphs. branches: None = folded where the model has both. prefer: memory =
    one run at a time, fewer graphs kept, and what lies between their layers given back after each run; engines on a GPU
    do the same for both.
    """

    threads: int = 0
    device: int = 0
    precision: Precision | None = None
    branches: Branches | None = None
    prefer: Prefer = "speed"


class Engine(Protocol):
    """Runs batches of one size on one model.

    name: its key in `ENGINES`. version: of the runtime. precision, branches: of what it computes. sizes: those it
    takes. lanes: runs that may go on side by side; 1: one after another.
    """

    name: str
    version: str
    precision: Precision
    branches: Branches
    sizes: Sizes
    lanes: int

    def run(
        self, batch: np.ndarray, tasks: Sequence[str] | None = None, *, alone: bool = True
    ) -> dict[str, np.ndarray]:
        """Maps by task for `batch`, uint8 (N, H, W, 3) RGB with (H, W) in `sizes`; each map starts with N.

        tasks: whose maps are wanted, None = all; the others cost nothing where the engine can leave them out. alone:
        whether this run may take all cores; at most `lanes` runs at a time may be not alone.
        Raises EngineError for another shape or dtype, or when the runtime fails.
        """
        ...

    def close(self) -> None:
        """Give memory and threads back; `run` must not be called afterwards."""
        ...


def check_batch(batch: np.ndarray, sizes: Sizes) -> tuple[int, int]:
    """(H, W) of a batch as `Engine.run` takes it. Raises EngineError for any other array."""
    size = batch.shape[1:3]
    if batch.dtype != np.uint8 or batch.ndim != 4 or batch.shape[3] != 3 or size not in sizes:
        raise EngineError(f"got {batch.dtype} {batch.shape}, the model takes uint8 (N, H, W, 3), HxW one of {sizes}")
    return size


def first_line(error: Exception) -> str:
    """What a runtime says of an error, short enough for a sentence of ours."""
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
