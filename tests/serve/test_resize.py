"""Between grids: classes stay classes, means stay means, vectors stay unit, and what is linear stays linear."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ptsa_serve.resize import shrink, stretch

SIDES = st.tuples(st.integers(1, 60), st.integers(1, 60))


@settings(max_examples=60, deadline=None)
@given(SIDES, SIDES)
def test_classes_come_from_the_nearest_centre(grid: tuple[int, int], size: tuple[int, int]):
    values = np.arange(grid[0] * grid[1], dtype=np.int64).reshape(grid).astype(np.uint8)
    rows, columns = (
        (np.arange(target) * 2 + 1) * source // (2 * target) for target, source in zip(size, grid, strict=True)
    )
    assert np.array_equal(stretch(values, size, "classes"), values[rows][:, columns])


@settings(max_examples=60, deadline=None)
@given(SIDES, SIDES, st.floats(-5, 5, width=32))
def test_flat_maps_stay_flat(grid: tuple[int, int], size: tuple[int, int], value: float):
    assert np.allclose(stretch(np.full(grid, value, np.float32), size, "metres"), value, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(SIDES, SIDES, st.integers(0, 99))
def test_maps_stay_within_their_range(grid: tuple[int, int], size: tuple[int, int], seed: int):
    values = np.random.default_rng(seed).uniform(0, 1, grid).astype(np.float32)
    found = stretch(values, size, "probability")
    assert found.shape == size
    assert values.min() - 1e-5 <= found.min() <= found.max() <= values.max() + 1e-5


@settings(max_examples=40, deadline=None)
@given(SIDES, SIDES, st.integers(0, 99))
def test_normals_stay_unit(grid: tuple[int, int], size: tuple[int, int], seed: int):
    # All to the same half space, as normals of visible surfaces are: opposite vectors would cancel.
    values = np.abs(np.random.default_rng(seed).standard_normal((*grid, 3))).astype(np.float32) + np.float32(0.1)
    values /= np.linalg.norm(values, axis=-1, keepdims=True)
    found = stretch(values, size, "unit_vectors")
    assert np.abs(np.linalg.norm(found, axis=-1) - 1).max() < 1e-5


def test_bilinear_uses_half_pixel_centres():
    ramp = np.tile(np.arange(8, dtype=np.float32), (2, 1))
    found = stretch(ramp, (2, 16), "metres")[0]
    assert np.allclose(found[1:-1], (np.arange(16)[1:-1] + 0.5) / 2 - 0.5)


def test_cancelling_normals_stay_finite():
    values = np.array([[[0, 0, 1], [0, 0, -1]]], np.float32)
    assert np.isfinite(stretch(values, (1, 3), "unit_vectors")).all()


def test_maps_at_their_own_size_are_not_touched():
    values = np.ones((4, 5, 3), np.float32)
    assert stretch(values, (4, 5), "unit_vectors") is values


def test_shrinking_a_photo_does_not_alias():
    """Lines of one pixel become even grey; a filter of fixed width would give black, white or stripes."""
    lines = np.zeros((400, 400, 3), np.uint8)
    lines[:, ::2] = 255
    found = shrink(lines, (37, 41))[2:-2, 2:-2]
    assert np.abs(found.astype(int) - 127).max() < 16
