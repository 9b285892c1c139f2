"""Weizmann horses: masks smaller than their photos, and a split by the number in a name."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.data.check import CheckConfig, check
from training.data.mix import Source
from training.data.opening import open_set
from training.errors import DataError


@pytest.fixture
def horses(tmp_path: Path) -> Path:
    """Ten photos of 80 x 60; the horse is the left half of each."""
    for number in range(1, 11):
        for folder, array in (
            ("rgb", np.random.default_rng(number).integers(0, 255, (60, 80, 3), np.uint8)),
            ("figure_ground", np.where(np.arange(40) < 20, 250, 4)[None].repeat(30, 0).astype(np.uint8)),
        ):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(array).save(tmp_path / folder / f"horse{number:03}.jpg")
    return tmp_path


def test_every_fifth_horse_is_kept_for_validation(horses: Path) -> None:
    names = {split: [photo.name for photo in open_set("horses", horses, split)] for split in ("train", "val")}
    assert names["val"] == ["horse005", "horse010"]
    assert len(names["train"]) == 8
    assert not set(names["train"]) & set(names["val"])


def test_a_mask_has_the_size_of_its_photo(horses: Path) -> None:
    label = open_set("horses", horses, "val")[0].labels["saliency"]
    assert label.shape == (60, 80)
    assert (label[:, :38] == 1).all()
    assert (label[:, 42:] == 0).all()


def test_a_mask_of_another_shape_is_refused(horses: Path) -> None:
    Image.fromarray(np.zeros((40, 30), np.uint8)).save(horses / "figure_ground/horse005.jpg")
    with pytest.raises(DataError, match="another shape"):
        open_set("horses", horses, "val")[0]


def test_a_name_without_a_number_is_refused(horses: Path) -> None:
    (horses / "rgb/horse001.jpg").rename(horses / "rgb/horse.jpg")
    with pytest.raises(DataError, match="no number"):
        open_set("horses", horses, "train")


def test_the_check_knows_the_layout(horses: Path) -> None:
    report = check(CheckConfig(horses))
    assert not report.failed
    assert "horses" in report.text


def test_an_upright_photo_is_cropped_in_training_not_squeezed(horses: Path) -> None:
    """The horse is its upper half: nearly all of some crops and little of others, but half of the whole."""
    for folder, array in (("rgb", np.zeros((120, 60, 3), np.uint8)), ("figure_ground", np.zeros((120, 60), np.uint8))):
        array[:60] = 255
        Image.fromarray(array).save(horses / folder / "horse001.jpg")
    source = Source(open_set("horses", horses, "train"), size=(48, 64), augment=lambda sample, rng: sample, seed=0)
    samples = [sample for index in range(8 * 12) if (sample := source[index])["name"] == "horse001"]
    shares = [float(sample["saliency"].float().mean()) for sample in samples]
    assert min(shares) < 0.3
    assert max(shares) > 0.7
