from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export.errors import ExportError
from export.sample import coarse, round_mantissa, sample_photo
from ptsa_serve.tasks import Kind


def test_rounding_stays_within_its_error() -> None:
    values = np.random.default_rng(0).normal(size=10_000).astype(np.float32) * np.float32(100)
    rounded = round_mantissa(values, bits=8)
    assert np.max(np.abs(rounded / values - 1)) <= 2**-9
    assert len(np.unique(rounded.view(np.uint32) & 0x7FFF)) == 1


def test_rounding_leaves_round_values_alone() -> None:
    values = np.float32([0, 1, -1, 0.5, 2.25])
    assert np.array_equal(round_mantissa(values, bits=8), values)


def test_rounding_carries_into_the_exponent() -> None:
    assert round_mantissa(np.float32([1.9999999]), bits=8).tolist() == [2.0]


@pytest.mark.parametrize(("kind", "error"), [("metres", 0.004), ("unit_vectors", 0.004), ("probability", 0.004)])
def test_coarse_maps_stay_near_and_keep_their_type(kind: Kind, error: float) -> None:
    values = np.random.default_rng(0).uniform(0.2, 1, (30, 40)).astype(np.float32)
    found = coarse(values, kind)
    assert found.dtype == np.float32
    difference = np.abs(found - values)
    assert 0 < np.max(difference / values if kind == "metres" else difference) <= error
    assert len(np.unique(found)) < 400


def test_coarse_classes_are_exact() -> None:
    classes = np.arange(256, dtype=np.uint8)
    assert coarse(classes, "classes") is classes


def test_a_sample_that_is_no_jpeg_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "photo.png")
    with pytest.raises(ExportError, match="PNG; the sample photo must be a JPEG"):
        sample_photo(tmp_path / "photo.png")
