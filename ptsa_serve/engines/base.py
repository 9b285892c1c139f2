"""What the predictor knows about whatever runs the model."""

from typing import Protocol

import numpy as np

__all__ = ["Engine"]


class Engine(Protocol):
    """Runs batches of one size; not thread-safe unless its own file says so.

    name: its key in `ENGINES`. version: of the runtime. sizes: the (H, W) it takes.
    """

    name: str
    version: str
    sizes: tuple[tuple[int, int], ...]

    def run(self, batch: np.ndarray) -> dict[str, np.ndarray]:
        """Maps by task for `batch`, uint8 (N, H, W, 3) RGB with (H, W) in `sizes`; each map starts with N.

        Raises EngineError for another shape or dtype, or when the runtime fails.
        """
        ...

    def close(self) -> None:
        """Give memory and threads back; `run` must not be called afterwards."""
        ...
