"""Lines one pixel wide, and what counts as finding one."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.data.records import EDGES
from training.scoring.boundaries import class_boundaries, disc, peaks
from training.scoring.metrics import metric_for


def regions(seed: int, sides: tuple[int, int] = (48, 64)) -> np.ndarray:
    """Classes whose borders run every way: the nearest of a few points."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: sides[0], : sides[1]]
    points = rng.uniform((0, 0), sides, (6, 2))
    return ((y[..., None] - points[:, 0]) ** 2 + (x[..., None] - points[:, 1]) ** 2).argmin(-1)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_boundaries_of_classes_are_thin_near_and_whole(seed: int) -> None:
    classes = regions(seed)
    lines = class_boundaries(classes)
    beside = np.zeros(classes.shape, np.uint8)
    beside[:, 1:] |= classes[:, 1:] != classes[:, :-1]
    beside[1:] |= classes[1:] != classes[:-1]
    assert (cv2.dilate(beside, np.ones((3, 3), np.uint8)) >= lines).all()  # at the change
    assert (cv2.dilate(lines, np.ones((7, 7), np.uint8)) >= beside).all()  # along all of it
    squares = lines[1:, 1:] & lines[:-1, 1:] & lines[1:, :-1] & lines[:-1, :-1]
    assert squares.mean() < 0.002  # one pixel wide, but where lines meet
    assert cv2.connectedComponents(lines)[0] <= cv2.connectedComponents(beside)[0]  # not torn


def test_one_class_has_no_boundary() -> None:
    assert not class_boundaries(np.full((9, 9), 4)).any()


def test_two_classes_have_one_line_between_them() -> None:
    classes = np.zeros((20, 30), int)
    classes[:, 11:] = 7
    lines = class_boundaries(classes)
    assert lines.sum(1)[2:-2].tolist() == [1] * 16
    assert lines[:, 10:12].sum() == lines.sum()


@pytest.mark.parametrize("across", [False, True])
def test_a_soft_ridge_becomes_its_crest(across: bool) -> None:
    line = np.zeros((40, 60), np.float32)
    line[:, 30] = 1
    soft = cv2.GaussianBlur(line, (0, 0), 3)
    found = peaks(soft.T if across else soft)
    found = found.T if across else found
    assert (found[5:-5, 30] == soft[5:-5, 30]).all()
    assert not found[5:-5, 22:30].any()
    assert not found[5:-5, 31:39].any()


def f(predicted: np.ndarray, label: np.ndarray, tolerance: float = 0.0075) -> dict[str, float | None]:
    metric = metric_for(EDGES, tolerance=tolerance)
    metric.update(predicted, label)
    return metric.compute()


def test_a_line_within_the_tolerance_is_found_and_one_beyond_is_not() -> None:
    label = np.zeros((120, 160), np.uint8)  # a diagonal of 200: 1.5 and 2.2 pixels
    label[:, 80] = 1
    one, two, three = (np.roll(label, shift, 1).astype(float) for shift in (1, 2, 3))
    assert f(one, label)["F_percent"] == 100
    assert f(two, label)["F_percent"] == 0
    assert f(two, label, 0.011)["F_percent"] == 100
    assert f(three, label, 0.011)["F_percent"] == 0


def test_precision_and_recall_make_f() -> None:
    label, predicted = np.zeros((120, 160), np.uint8), np.zeros((120, 160))
    label[:, 40] = label[:, 120] = 1
    predicted[:, 40] = 0.9  # half of what is there, and nothing else
    assert f(predicted, label)["F_percent"] == pytest.approx(200 * 0.5 / 1.5)
    predicted[:, 80] = 0.3  # beside it, as much that is not there
    assert f(predicted, label)["F_percent"] == pytest.approx(200 * 0.5 / 1.5)
    predicted[:, 80] = 0.95
    assert f(predicted, label)["F_percent"] == pytest.approx(50)


def test_ods_takes_one_threshold_for_the_whole_split() -> None:
    label = np.zeros((120, 160), np.uint8)
    label[:, 40] = 1
    metric = metric_for(EDGES)
    for strength, noise in ((0.4, 0.2), (0.9, 0.6)):
        predicted = label * strength
        predicted[:, 100] = noise
        metric.update(predicted, label)
    figures = metric.compute()
    # Above 0.2 both lines are found, and one of noise; apart, each photo has a threshold without any.
    assert figures["ODS_F_percent"] == pytest.approx(200 * (2 / 3) / (5 / 3))
    assert figures["F_percent"] == pytest.approx(200 * 0.5 * 0.5 / 1)


def test_what_is_found_where_there_is_no_label_does_not_count() -> None:
    label = np.zeros((60, 80), np.uint8)
    label[:, 40], label[:, 60:] = 1, 255
    predicted = (label == 1).astype(float)
    predicted[:, 70] = 1
    assert f(predicted, label)["ODS_F_percent"] == 100


def test_a_disc_is_round() -> None:
    assert disc(0.5).tolist() == [[1]]
    assert disc(1.4).tolist() == [[0, 1, 0], [1, 1, 1], [0, 1, 0]]
    assert disc(1.5).sum() == 9
