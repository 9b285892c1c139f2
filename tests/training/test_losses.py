import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import ptsa_serve.tasks
from training.data.records import EDGES
from training.network.heads import LOG_DEPTH, finish
from training.scoring.losses import class_weights, task_loss

TASKS = ptsa_serve.tasks.TASKS | {"edges": EDGES}

NOTHING = {
    "segmentation": torch.full((2, 8, 8), 255, dtype=torch.uint8),
    "depth": torch.zeros(2, 8, 8),
    "normals": torch.zeros(2, 3, 8, 8),
    "saliency": torch.full((2, 8, 8), 255, dtype=torch.uint8),
    "edges": torch.full((2, 8, 8), 255, dtype=torch.uint8),
}


@pytest.mark.parametrize("task", NOTHING)
def test_no_label_gives_zero_loss_and_zero_gradient(task: str) -> None:
    raw = torch.randn(2, TASKS[task].channels, 4, 4, requires_grad=True)
    loss = task_loss(TASKS[task], raw, NOTHING[task])
    loss.backward()
    assert loss.item() == 0
    assert raw.grad is not None
    assert not raw.grad.any()


def test_pixels_without_label_do_not_matter() -> None:
    raw = torch.randn(1, 1, 8, 8)
    label = torch.rand(1, 8, 8) + 1
    label[0, :4] = 0
    other = raw.clone()
    other[0, 0, :4] = 99
    assert task_loss(TASKS["depth"], raw, label) == task_loss(TASKS["depth"], other, label)


PRESENT = {
    "segmentation": torch.zeros(1, 8, 8, dtype=torch.uint8),
    "depth": torch.full((1, 8, 8), 2.0),
    "normals": torch.nn.functional.normalize(torch.ones(1, 3, 8, 8), dim=1),
    "saliency": torch.ones(1, 8, 8, dtype=torch.uint8),
    "edges": torch.ones(1, 8, 8, dtype=torch.uint8),
}


@pytest.mark.parametrize("task", NOTHING)
def test_a_photo_without_label_does_not_change_the_loss_of_a_batch(task: str) -> None:
    raw = torch.randn(3, TASKS[task].channels, 4, 4)
    alone = task_loss(TASKS[task], raw[:1], PRESENT[task])
    together = task_loss(TASKS[task], raw, torch.cat([PRESENT[task], NOTHING[task]]))
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize("outside", [-3.0, 5.0, -40.0, 200.0])
def test_depth_outside_its_bounds_is_pulled_back(outside: float) -> None:
    raw = torch.full((1, 1, 4, 4), outside, requires_grad=True)
    for label in (0.2, 2.0, 60.0):
        raw.grad = None
        loss = task_loss(TASKS["depth"], raw, torch.full((1, 4, 4), label))
        loss.backward()
        assert loss.isfinite()
        assert raw.grad is not None
        assert raw.grad.isfinite().all()
        assert (raw.grad.sign() == (1 if outside > LOG_DEPTH[1] else -1)).all()


def test_depth_inside_its_bounds_costs_what_it_did() -> None:
    raw, label = torch.tensor([[[[0.0, 1.0]]]]), torch.tensor([[[2.0, 2.0]]])
    errors = torch.tensor([1 - 2.0, torch.e - 2])
    expected = errors.abs().mean() + errors.square().mean() / 2 + (raw[0, 0, 0] - label[0, 0].log()).abs().mean()
    torch.testing.assert_close(task_loss(TASKS["depth"], raw, label), expected)


def test_normals_that_point_almost_the_wrong_way_are_turned() -> None:
    raw = torch.tensor([0.005, 0.0, -1.0]).view(1, 3, 1, 1).requires_grad_()
    task_loss(TASKS["normals"], raw, torch.tensor([0.0, 0.0, 1.0]).view(1, 3, 1, 1)).backward()
    assert raw.grad is not None
    assert raw.grad[0, 0] < -0.1  # further to the side, and so round


@pytest.mark.parametrize("task", NOTHING)
@pytest.mark.parametrize("value", [0.0, 1e-12, 1e4, -1e4])
def test_loss_and_gradient_are_finite_for_any_raw_value(task: str, value: float) -> None:
    raw = torch.full((1, TASKS[task].channels, 4, 4), value, requires_grad=True)
    loss = task_loss(TASKS[task], raw, PRESENT[task])
    loss.backward()
    assert loss.isfinite()
    assert raw.grad is not None
    assert raw.grad.isfinite().all()


def test_perfect_maps_cost_almost_nothing() -> None:
    depth = torch.rand(1, 8, 8) * 5 + 1
    assert task_loss(TASKS["depth"], depth.log()[:, None], depth) < 1e-5
    normals = torch.nn.functional.normalize(torch.randn(1, 3, 8, 8), dim=1)
    assert task_loss(TASKS["normals"], normals * 3, normals) < 0.02  # acos is cut off at 0.8 degrees
    mask = torch.rand(1, 8, 8) > 0.5
    assert task_loss(TASKS["saliency"], (mask.float() * 2 - 1)[:, None] * 50, mask.to(torch.uint8)) < 1e-5


@given(st.lists(st.integers(0, 10_000), min_size=2, max_size=39).filter(any))
def test_class_weights_average_to_one_over_pixels(counts: list[int]) -> None:
    pixels = torch.tensor(counts)
    weights = class_weights(pixels)
    assert (weights * pixels).sum() / pixels.sum() == pytest.approx(1, rel=1e-4)


def test_classes_that_never_occur_give_no_weights_that_are_no_numbers() -> None:
    assert class_weights(torch.zeros(5, dtype=torch.int64)).tolist() == [1.0] * 5
    assert class_weights(torch.tensor([0, 9, 0])).isfinite().all()


@pytest.mark.parametrize("task", NOTHING)
def test_finished_maps_are_in_the_tasks_range(task: str) -> None:
    result = finish(TASKS[task], torch.randn(2, TASKS[task].channels, 4, 6) * 50, (16, 24))
    assert result.shape[:3] == (2, 16, 24)
    if task == "segmentation":
        assert result.dtype == torch.uint8
        assert result.max() < 39
    elif task == "normals":
        torch.testing.assert_close(result.norm(dim=-1), torch.ones(2, 16, 24))
    else:
        assert result.min() >= 0
        assert result.max() <= (81.5 if task == "depth" else 1)


def test_a_boundary_weighs_nineteen_times_what_is_none() -> None:
    raw = torch.zeros(1, 1, 4, 4)
    label = torch.zeros(1, 4, 4, dtype=torch.uint8)
    label[0, 0, 0] = 1
    label[0, 3] = 255
    chance = torch.log(torch.tensor(2.0))
    expected = chance * (0.95 * 1 + 0.05 * 11) / 12
    torch.testing.assert_close(task_loss(EDGES, raw, label), expected)
