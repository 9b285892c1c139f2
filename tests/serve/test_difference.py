import numpy as np
import pytest

from ptsa_serve.difference import Difference, difference

ZEROS = np.zeros((1, 4, 4), np.float32)


@pytest.mark.parametrize("other", [None, ZEROS.astype(np.float64), ZEROS[:, :2], np.full_like(ZEROS, np.nan)])
def test_maps_that_cannot_be_compared_are_infinitely_far(other: np.ndarray | None):
    assert difference("probability", ZEROS, other) == Difference(float("inf"), float("inf"))


def test_classes_count_pixels():
    found = np.array([[1, 2], [3, 4]], np.uint8)
    assert difference("classes", found, np.array([[1, 2], [9, 4]], np.uint8)) == Difference(0.25, 0.25)


def test_metres_have_a_relative_mean_and_an_absolute_worst():
    found = difference("metres", np.array([2.2, 0.0], np.float32), np.array([2.0, 0.05], np.float32))
    assert found.mean == pytest.approx((0.1 + 0.5) / 2)
    assert found.worst == pytest.approx(0.2)
