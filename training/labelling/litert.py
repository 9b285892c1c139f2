"""TensorFlow Lite networks, run by LiteRT."""

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.errors import CheckpointError

__all__ = ["LiteRT"]


class LiteRT:
    """A network of one image; one thread. Raises CheckpointError for a damaged file."""

    def __init__(self, path: Path) -> None:
        runtime = import_module("ai_edge_litert.interpreter")
        try:
            self._net = runtime.Interpreter(str(path), num_threads=1)
            self._net.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise CheckpointError(f"{path}: no network that LiteRT runs ({reason}); copy it again") from None
        (self._input,) = self._net.get_input_details()

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of its image."""
        _, height, width, _ = self._input["shape"]
        return int(height), int(width)

    def __call__(self, image: NDArray) -> list[NDArray[np.float32]]:
        """Its outputs (h, w, C), as real numbers, for an image (H, W, 3) of its input's type."""
        self._net.set_tensor(self._input["index"], image[None])
        self._net.invoke()
        return [self._real(place) for place in self._net.get_output_details()]

    def _real(self, place: dict[str, Any]) -> NDArray[np.float32]:
        values = self._net.get_tensor(place["index"])[0]
        if values.dtype == np.float32:
            return values
        scale, zero = place["quantization"]
        return ((values.astype(np.float32) - zero) * scale).astype(np.float32)
