"""Maps of frames that are shifted against each other are compared where both look."""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from benchmarks.steadiness import measure_steadiness
from ptsa_serve.artifact import Artifact
from ptsa_serve.engines import EngineOptions, load_engine
from ptsa_serve.images import ImageLimits, decode
from ptsa_serve.predictor import Predictor
from ptsa_serve.tasks import TASKS


class OfPixels:
    """Answers maps that move with the photo: what each pixel holds, and nothing of where it is."""

    def __init__(self) -> None:
        self.tasks = {name: TASKS[name] for name in ("segmentation", "depth", "saliency")}

    def predict(self, data: bytes) -> SimpleNamespace:
        pixels = decode(data, ImageLimits()).pixels
        return SimpleNamespace(maps=self.maps(pixels[..., 0].astype(np.float32)))

    def maps(self, red: np.ndarray) -> Mapping[str, np.ndarray]:
        return {"segmentation": (red / 7).astype(np.uint8), "depth": 1 + red / 50, "saliency": red / 255}


class OfPlaces(OfPixels):
    def maps(self, red: np.ndarray) -> Mapping[str, np.ndarray]:
        return super().maps(np.broadcast_to(np.arange(red.shape[1], dtype=np.float32), red.shape))


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    blocks = np.kron(np.random.default_rng(0).integers(0, 255, (6, 8, 3), np.uint8), np.ones((16, 16, 1), np.uint8))
    Image.fromarray(blocks).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_maps_that_move_with_the_photo_are_steady(photo: Path) -> None:
    figures = measure_steadiness(OfPixels(), [photo]).figures  # type: ignore[arg-type]
    for shift in (1, 4, 16):
        assert figures[f"segmentation_{shift}px_shift_pixel_accuracy_percent"] == 100
        assert figures[f"depth_{shift}px_shift_relative_error"] == 0
        assert figures[f"saliency_{shift}px_shift_IoU_percent"] == 100
    assert figures["depth_median_half_size_percent"] < 10


def test_maps_that_stay_where_they_are_are_not(photo: Path) -> None:
    figures = measure_steadiness(OfPlaces(), [photo]).figures  # type: ignore[arg-type]
    assert figures["depth_1px_shift_relative_error"] == pytest.approx(0.01, rel=0.5)
    assert figures["segmentation_1px_shift_pixel_accuracy_percent"] < 90
    assert figures["depth_median_double_size_percent"] > 20


def test_a_served_model_has_a_figure_for_every_task(tiny_artifact: Path, photo: Path) -> None:
    artifact = Artifact.open(tiny_artifact)
    predictor = Predictor(artifact, load_engine("onnxruntime", artifact, EngineOptions(threads=1)))
    figures = measure_steadiness(predictor, [photo]).figures
    assert {name.split("_")[0] for name in figures} == set(predictor.tasks)
