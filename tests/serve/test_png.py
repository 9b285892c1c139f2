"""The PNG writer against Pillow's reader, for any map."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from ptsa_serve.encoding import deflate
from ptsa_serve.encoding.png import encode_png

SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=24)


def read(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(st.sampled_from([np.uint8, np.uint16]), SHAPES))
def test_grey_survives(values: np.ndarray):
    assert np.array_equal(read(encode_png(values)), values)


@settings(max_examples=40, deadline=None)
@given(SHAPES.flatmap(lambda shape: hnp.arrays(np.uint8, (*shape, 3))))
def test_rgb_survives(values: np.ndarray):
    assert np.array_equal(read(encode_png(values)), values)


def test_palette_shows_colours_and_reads_back_as_indices():
    palette = np.array([[1, 2, 3], [200, 100, 50]], np.uint8)
    values = np.array([[0, 1, 1], [1, 0, 0]], np.uint8)
    data = encode_png(values, palette)
    assert np.array_equal(read(data), values)
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == "P"
        assert np.array_equal(np.asarray(image.convert("RGB")), palette[values])


def test_arrays_with_gaps_survive():
    values = np.arange(600, dtype=np.uint16).reshape(20, 30)[::2, ::-3]
    assert np.array_equal(read(encode_png(values)), values)


def test_standard_library_takes_over_where_isal_is_missing(monkeypatch: pytest.MonkeyPatch):
    values = np.random.default_rng(0).integers(0, 65536, (31, 17), dtype=np.uint16)
    monkeypatch.setattr(deflate, "isal_zlib", None)
    assert np.array_equal(read(encode_png(values)), values)


@pytest.mark.parametrize("values", [np.zeros((2, 2)), np.zeros((2, 2, 4), np.uint8), np.zeros((0, 4), np.uint8)])
def test_other_arrays_are_refused(values: np.ndarray):
    with pytest.raises(ValueError, match="use uint8"):
        encode_png(values)
