"""U²-Net (Qin et al., Pattern Recognition 2020, arXiv 2005.09007): salient objects of any photo, in ONNX Runtime."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ptsa_serve.resize import shrink
from training.backbones import MEAN, STD
from training.errors import CheckpointError
from training.labelling.base import Guess, Guesses

__all__ = ["U2Net"]

_MEAN, _STD = np.array(MEAN, np.float32), np.array(STD, np.float32)


class U2Net:
    """Saliency at the network's own size (320 x 320 of those that were published); one thread.

    Confidence is 0 where the probability is 1/2, and 1 where it is 0 or 1. A photo is as familiar as its most salient
    pixel is before it is made 1. Raises CheckpointError for a damaged file.
    """

    def __init__(self, path: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            (place,) = self._session.get_inputs()
            self._input, (_, _, height, width) = place.name, place.shape
            self._size = int(height), int(width)
        except Exception as error:  # each damage has an exception of its own
            reason = str(error).splitlines()[0]
            raise CheckpointError(f"{path}: no U²-Net that runs here ({reason}); copy it again") from None
        self._output = self._session.get_outputs()[0].name  # the fused map; the others are those of single depths

    def __call__(self, photo: NDArray[np.uint8]) -> Guesses:
        """See `LabelTeacher`."""
        pixels = shrink(photo, self._size).astype(np.float32)
        # As its authors do, the brightest value of the photo is 1.
        scaled = (pixels / max(float(pixels.max()), 1.0) * 255 - _MEAN) / _STD
        (maps,) = self._session.run([self._output], {self._input: scaled.transpose(2, 0, 1)[None]})
        raw = np.asarray(maps)[0, 0]
        # As its authors do again; where nothing stands out this would make an object of noise: hence `familiar`.
        span = max(float(raw.max() - raw.min()), 1e-6)
        probability = ((raw - raw.min()) / span).astype(np.float32)
        return Guesses({"saliency": Guess(probability, np.abs(2 * probability - 1))}, float(raw.max()))
