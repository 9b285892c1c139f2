"""Figures of a served model and of predictors that do not look, over photos of which some have no label."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.accuracy import measure_accuracy, measure_trivial
from ptsa_serve.artifact import Artifact
from ptsa_serve.engines import EngineOptions, load_engine
from ptsa_serve.predictor import Predictor

HEIGHT, WIDTH = 48, 64
LEFT = np.arange(WIDTH) < WIDTH // 2


@pytest.fixture
def predictor(tiny_artifact: Path) -> Predictor:
    artifact = Artifact.open(tiny_artifact)
    return Predictor(artifact, load_engine("onnxruntime", artifact, EngineOptions(threads=1)))


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.fixture
def nyu(tmp_path: Path) -> Path:
    """Depth of 2 m where there is any: everywhere, in the left half, nowhere, and no file."""
    whole = np.full((HEIGHT, WIDTH), 2000, np.uint16)
    depths = [whole, np.where(LEFT, whole, 0).astype(np.uint16), np.zeros_like(whole), None]
    for split in ("train", "val"):
        for number, depth in enumerate(depths):
            photo = np.random.default_rng(number).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
            save(tmp_path / f"nyu/{split}/image/{number:04}.jpg", photo)
            if depth is not None:
                save(tmp_path / f"nyu/{split}/depth/{number:04}.png", depth)
    return tmp_path / "nyu"


def test_pixels_without_label_are_not_in_the_mean(nyu: Path) -> None:
    figures = measure_trivial(name="nyu", root=nyu, split="val").figures
    assert figures["depth_constant_RMSE_m"] == pytest.approx(0, abs=1e-6)
    assert figures["depth_mean_map_RMSE_m"] == pytest.approx(0, abs=1e-6)


def test_a_person_map_with_void_is_a_mean_of_the_rest(tmp_path: Path) -> None:
    label = np.where(LEFT, 5, 255)[None].repeat(HEIGHT, 0).astype(np.uint8)
    for split in ("train", "val"):
        save(tmp_path / f"ccp/{split}/0000.jpg", np.zeros((HEIGHT, WIDTH, 3), np.uint8))
        save(tmp_path / f"ccp/{split}/0000.png", label)
    figures = measure_trivial(name="ccp", root=tmp_path / "ccp", split="val").figures
    assert figures["saliency_constant_IoU_percent"] == 100


def test_served_maps_are_scored_on_what_is_labelled(nyu: Path, predictor: Predictor) -> None:
    figures = measure_accuracy(predictor, name="nyu", root=nyu, split="val").figures
    assert {"depth_RMSE_m", "depth_relative_error", "depth_delta_1.25_percent"} < set(figures)
    square, count = 0.0, 0
    for number, part in ((0, slice(None)), (1, slice(0, WIDTH // 2))):
        photo = (nyu / f"val/image/{number:04}.jpg").read_bytes()
        found = predictor.predict(photo, tasks=["depth"]).maps["depth"][:, part].astype(float)
        square, count = square + ((found - 2) ** 2).sum(), count + found.size
    assert figures["depth_RMSE_m"] == pytest.approx((square / count) ** 0.5)


def test_a_split_without_labels_has_no_figures(nyu: Path, predictor: Predictor) -> None:
    for path in (nyu / "val/depth").iterdir():
        save(path, np.zeros((HEIGHT, WIDTH), np.uint16))
    figures = measure_accuracy(predictor, name="nyu", root=nyu, split="val").figures
    assert set(figures.values()) == {None}
