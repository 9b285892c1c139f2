"""The real sets, where they are at hand: PTSA_DATA names the folder that holds nyu/ and ccp/."""

import os
from pathlib import Path

import numpy as np
import pytest

from training.data import DATASETS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def root() -> Path:
    folder = Path(os.environ.get("PTSA_DATA", ""))
    if not (folder / "nyu/train").is_dir():
        pytest.skip("needs the data sets: set PTSA_DATA to the folder that holds nyu/ and ccp/")
    return folder


@pytest.mark.parametrize(("name", "split", "count"), [("nyu", "train", 795), ("ccp", "train", 756)])
def test_training_split_is_complete(root: Path, name: str, split: str, count: int) -> None:
    assert len(DATASETS[name](root / name, split)) == count


def test_labels_are_in_their_units(root: Path) -> None:
    nyu = DATASETS["nyu"](root / "nyu", "val")
    for index in range(0, len(nyu), 40):
        labels = nyu[index].labels
        depth, normals, classes = labels["depth"], labels["normals"], labels["segmentation"]
        assert depth[depth > 0].min() > 0.5
        assert depth.max() <= 10
        lengths = np.linalg.norm(normals, axis=-1)
        assert np.all((np.abs(lengths - 1) < 1e-5) | (lengths == 0))
        assert set(np.unique(classes)) <= {*range(39), 255}
        assert normals[..., 2].mean() > 0.2  # surfaces that are seen face the camera


def test_floors_point_up(root: Path) -> None:
    nyu = DATASETS["nyu"](root / "nyu", "train")
    up = []
    for index in range(0, len(nyu), 20):
        labels = nyu[index].labels
        floor = labels["segmentation"] == 1
        if floor.sum() > 500:
            up.append(labels["normals"][floor][:, 1].mean())
    assert np.mean(up) > 0.6


def test_mean_map_scores_as_published_with_the_data(root: Path) -> None:
    from benchmarks.accuracy import measure_trivial

    figures = measure_trivial(name="ccp", root=root / "ccp", split="val").figures
    assert figures["saliency_mean_map_IoU_percent"] == pytest.approx(68.7, abs=0.5)
