"""What every rival does with a photo: Pillow, the graph in ONNX Runtime with its default options, NumPy's npz."""

import io
import os

import numpy as np
import onnxruntime
from PIL import Image

__all__ = ["GRAPH", "Plain"]

GRAPH = "RIVAL_GRAPH"  # the environment variable that names an ONNX file of 384 x 512


class Plain:
    """One session, as a script of fifteen lines would make it."""

    def __init__(self) -> None:
        self._session = onnxruntime.InferenceSession(os.environ[GRAPH], providers=["CPUExecutionProvider"])
        self._names = [output.name for output in self._session.get_outputs()]

    def answer(self, photo: bytes) -> bytes:
        """The maps of a photo at 512 x 384, as an npz file."""
        image = Image.open(io.BytesIO(photo)).convert("RGB").resize((512, 384), Image.Resampling.BILINEAR)
        maps = self._session.run(self._names, {"image": np.asarray(image)[None]})
        buffer = io.BytesIO()
        arrays = {name: np.asarray(values)[0] for name, values in zip(self._names, maps, strict=True)}
        np.savez(buffer, allow_pickle=False, **arrays)
        return buffer.getvalue()
