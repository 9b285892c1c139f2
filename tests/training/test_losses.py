import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ptsa_serve.tasks import TASKS
from training.heads import finish
from training.losses import class_weights, task_loss

NOTHING = {
    "segmentation": torch.full((2, 8, 8), 255, dtype=torch.uint8),
    "depth": torch.zeros(2, 8, 8),
    "normals": torch.zeros(2, 3, 8, 8),
    "saliency": torch.full((2, 8, 8), 255, dtype=torch.uint8),
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
        assert result.max() <= (1 if task == "saliency" else 81.5)
