"""What every rival does with a photo: Pillow, the graph in ONNX Runtime with its default options, NumPy's npz."""

import io
import os

import numpy as np
import onnxruntime
from PIL import Image

__all__ = ["GRAPH", "Plain"]

GRAPH = "RIVAL_GRAPH"  # the environment variable that names an ONNX file of a fixed size


class Plain:
    """One session, as a script of fifteen lines would make it."""

    def __init__(self) -> None:
        self._session = onnxruntime.InferenceSession(os.environ[GRAPH], providers=["CPUExecutionProvider"])
        _, self._height, self._width, _ = self._session.get_inputs()[0].shape
        self._names = [output.name for output in self._session.get_outputs()]

    def answer(self, photo: bytes) -> bytes:
        """The maps of a photo at the graph's size, as an npz file."""
        size = (self._width, self._height)
        image = Image.open(io.BytesIO(photo)).convert("RGB").resize(size, Image.Resampling.BILINEAR)
        maps = self._session.run(self._names, {"image": np.asarray(image)[None]})
        buffer = io.BytesIO()
        arrays = {name: np.asarray(values)[0] for name, values in zip(self._names, maps, strict=True)}
        np.savez(buffer, allow_pickle=False, **arrays)
        return buffer.getvalue()
