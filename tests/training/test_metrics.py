import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ptsa_serve.tasks
from training.data.records import EDGES
from training.scoring.metrics import metric_for

TASKS = ptsa_serve.tasks.TASKS | {"edges": EDGES}

rng = np.random.default_rng(0)


def unit(shape: tuple[int, ...]) -> np.ndarray:
    v = rng.normal(size=(*shape, 3))
    return v / np.linalg.norm(v, axis=-1, keepdims=True)


MAPS = {
    "segmentation": lambda: rng.integers(0, 39, (12, 16)).astype(np.uint8),
    "depth": lambda: rng.uniform(0.5, 9, (12, 16)),
    "normals": lambda: unit((12, 16)),
    "saliency": lambda: (rng.random((12, 16)) > 0.5).astype(np.uint8),
    "edges": lambda: (rng.random((12, 16)) > 0.7).astype(np.uint8),
}
BEST = {"mIoU_percent": 100, "RMSE_m": 0, "mean_angle_degrees": 0, "IoU_percent": 100, "max_F_percent": 100}
BEST |= {"F_percent": 100, "ODS_F_percent": 100, "edge_F_percent": 100}
BEST |= {"aligned_RMSE_m": 0, "aligned_delta_1.25_percent": 100}


@pytest.mark.parametrize("task", MAPS)
def test_the_label_itself_scores_best(task: str) -> None:
    metric = metric_for(TASKS[task])
    for _ in range(3):
        label = MAPS[task]()
        metric.update(label, label)
    figures = metric.compute()
    for name, best in BEST.items():
        if name in figures:
            assert figures[name] == pytest.approx(best, abs=1e-6)


NOTHING = {
    "segmentation": np.full((12, 16), 255, np.uint8),
    "depth": np.zeros((12, 16), np.float32),
    "normals": np.zeros((12, 16, 3), np.float32),
    "saliency": np.full((12, 16), 255, np.uint8),
    "edges": np.full((12, 16), 255, np.uint8),
}


@pytest.mark.parametrize("task", MAPS)
def test_a_photo_without_label_does_not_change_the_figures(task: str) -> None:
    alone, together = metric_for(TASKS[task]), metric_for(TASKS[task])
    for _ in range(2):
        predicted, label = MAPS[task](), MAPS[task]()
        alone.update(predicted, label)
        together.update(predicted, label)
        together.update(MAPS[task](), NOTHING[task])
    assert together.compute() == alone.compute()


@pytest.mark.parametrize("task", MAPS)
def test_without_any_label_there_is_no_figure(task: str) -> None:
    metric = metric_for(TASKS[task])
    assert set(metric.compute().values()) == {None}
    metric.update(MAPS[task](), NOTHING[task])
    assert set(metric.compute().values()) == {None}


def test_finding_nothing_where_nothing_is_salient_is_right() -> None:
    empty, full = np.zeros((4, 4), np.uint8), np.ones((4, 4), np.uint8)
    metric = metric_for(TASKS["saliency"])
    metric.update(empty.astype(float), empty)
    assert metric.compute() == {"IoU_percent": 100, "max_F_percent": 100}
    metric.update(full.astype(float), full)
    assert metric.compute() == {"IoU_percent": 100, "max_F_percent": 100}
    metric.update(full.astype(float), empty)
    assert metric.compute()["IoU_percent"] == pytest.approx(100 * 2 / 3)
    metric.update(empty.astype(float), full)
    assert metric.compute()["IoU_percent"] == pytest.approx(50)


def test_half_a_label_counts_for_its_half() -> None:
    label = np.array([[1, 1, 255, 255]], np.uint8)
    metric = metric_for(TASKS["saliency"])
    metric.update(np.array([[0.9, 0.1, 0.9, 0.9]]), label)
    assert metric.compute()["IoU_percent"] == 50


def test_miou_is_counted_over_the_split_not_averaged_over_photos() -> None:
    metric = metric_for(TASKS["segmentation"])
    metric.update(np.array([[0, 0, 0, 1]]), np.array([[0, 0, 0, 0]]))
    metric.update(np.array([[1, 1, 1, 1]]), np.array([[1, 1, 1, 1]]))
    assert metric.compute()["mIoU_percent"] == pytest.approx(100 * (3 / 4 + 4 / 5) / 2)


def test_ignored_pixels_do_not_count() -> None:
    metric = metric_for(TASKS["segmentation"])
    metric.update(np.array([[3, 7]]), np.array([[3, 255]]))
    assert metric.compute()["mIoU_percent"] == 100
    depth = metric_for(TASKS["depth"])
    depth.update(np.array([[2.0, 9.0]]), np.array([[1.0, 0.0]]))
    assert depth.compute()["RMSE_m"] == 1


def test_opposite_normals_are_180_degrees_apart() -> None:
    metric = metric_for(TASKS["normals"])
    n = unit((4, 4))
    metric.update(-n, n)
    assert metric.compute()["mean_angle_degrees"] == pytest.approx(180)


@settings(max_examples=20)
@given(st.integers(0, 1000))
def test_saliency_f_matches_a_loop_over_thresholds(seed: int) -> None:
    generator = np.random.default_rng(seed)
    p, t = generator.random((9, 7)), generator.random((9, 7)) > 0.6
    metric = metric_for(TASKS["saliency"])
    metric.update(p, t.astype(np.uint8))
    best = 0.0
    for k in range(255):
        chosen = p > k / 255
        precision = (chosen & t).sum() / chosen.sum() if chosen.any() else 1.0
        recall = (chosen & t).sum() / max(1, t.sum())
        best = max(best, 1.3 * precision * recall / max(0.3 * precision + recall, 1e-12))
    assert metric.compute()["max_F_percent"] == pytest.approx(100 * best)


def left_and_right(column: int) -> np.ndarray:
    return np.repeat((np.arange(320) >= column)[None], 240, 0).astype(np.uint8)


def test_an_edge_is_found_where_the_map_has_one_within_three_pixels() -> None:
    for shift, right in ((0, 100), (3, 100), (4, 0)):
        metric = metric_for(TASKS["segmentation"])
        metric.update(left_and_right(100 + shift), left_and_right(100))
        assert metric.compute()["edge_F_percent"] == pytest.approx(right), shift


def test_edges_beside_pixels_without_label_do_not_count() -> None:
    label = left_and_right(100)
    label[:, 200:] = 255
    metric = metric_for(TASKS["segmentation"])
    predicted = label.copy()
    predicted[:, 198:] = 7
    metric.update(predicted, label)
    assert metric.compute()["edge_F_percent"] == pytest.approx(100)


@given(factor=st.floats(0.2, 5))
def test_the_scale_of_a_map_does_not_change_what_is_measured_of_its_shape(factor: float) -> None:
    label, predicted = MAPS["depth"](), MAPS["depth"]()
    one, other = metric_for(TASKS["depth"]), metric_for(TASKS["depth"])
    one.update(predicted, label)
    other.update(predicted * factor, label)
    for name in ("aligned_RMSE_m", "aligned_delta_1.25_percent"):
        assert other.compute()[name] == pytest.approx(one.compute()[name], rel=1e-2)
