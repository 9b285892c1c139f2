"""Do maps depend on what does not matter? A photo at other sizes, and a camera that moves by a few pixels.

Each answer is scored as if the other one were its label: what a person sees as flicker.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from benchmarks.measurement import Measurement
from ptsa_serve.images import ImageLimits, decode
from ptsa_serve.predictor import Predictor
from training.scoring.metrics import metric_for

__all__ = ["measure_steadiness"]

_SIZES = {"half": 0.5, "double": 2.0}
_SHIFTS = (1, 4, 16)  # pixels to the right and down


def measure_steadiness(predictor: Predictor, photos: Sequence[Path]) -> Measurement:
    """Figures over `photos`, each at least twice as large as the largest shift and as the server's smallest.

    `depth_median_*_percent`: by how much the median depth of a photo changes with its size, half of the photos by less.
    `TASK_*_shift_FIGURE`: of the maps of frames that are shifted against each other, over what both show.
    Raises PTSAError for a photo that the server would refuse.
    """
    depths = [name for name, task in predictor.tasks.items() if task.kind == "metres"]
    changes: dict[str, list[float]] = {f"{name}_median_{size}_size_percent": [] for name in depths for size in _SIZES}
    metrics = {(name, shift): metric_for(task) for name, task in predictor.tasks.items() for shift in _SHIFTS}
    for path in tqdm(photos, desc="photos", unit="photo", leave=False, disable=None):
        pixels = decode(path.read_bytes(), ImageLimits()).pixels
        here = _maps(predictor, pixels)
        for size, factor in _SIZES.items():
            other = _maps(predictor, _resized(pixels, factor))
            for name in depths:
                change = np.median(other[name]) / np.median(here[name]) - 1
                changes[f"{name}_median_{size}_size_percent"].append(100 * abs(float(change)))
        frames = {shift: _maps(predictor, _frame(pixels, shift)) for shift in (0, *_SHIFTS)}
        for (name, shift), metric in metrics.items():
            first, second = frames[0][name][shift:, shift:], frames[shift][name]
            second = second[: first.shape[0], : first.shape[1]]
            metric.update(second, _as_label(first, predictor.tasks[name].kind))
    figures: dict[str, float | None] = {name: median(values) for name, values in changes.items()}
    for (name, shift), metric in metrics.items():
        figures |= {f"{name}_{shift}px_shift_{figure}": value for figure, value in metric.compute().items()}
    return Measurement("Do maps stay where the scene stays?", figures, {"photos": len(photos)})


def _maps(predictor: Predictor, pixels: NDArray[np.uint8]) -> dict[str, Any]:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return dict(predictor.predict(file.getvalue()).maps)


def _resized(pixels: NDArray[np.uint8], factor: float) -> NDArray[np.uint8]:
    height, width = (round(side * factor) for side in pixels.shape[:2])
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS))


def _frame(pixels: NDArray[np.uint8], shift: int) -> NDArray[np.uint8]:
    """What a camera sees that is turned right and down by so many pixels; all frames are of one size."""
    height, width = (side - max(_SHIFTS) for side in pixels.shape[:2])
    return pixels[shift : shift + height, shift : shift + width]


def _as_label(values: NDArray, kind: str) -> NDArray:
    return (values > 0.5).astype(np.uint8) if kind in ("probability", "boundary") else values
