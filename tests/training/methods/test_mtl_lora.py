"""MTL-LoRA: shared factors, of which each task has a mixture of its own."""

import pytest
import torch

from training.errors import ConfigError
from training.methods.mtl_lora import Mixed, Options
from training.network.layout import Stream
from training.network.slots import Slot, Weights

SLOT = Slot("fc", "fc1", "linear", stage=0, tensors={"weight": "fc.weight"})
A, B = Stream(("a",)), Stream(("b",))


@pytest.fixture
def mixed() -> Mixed:
    torch.manual_seed(0)
    change = Mixed(Options(), torch.randn(7, 5), [A.tasks, B.tasks], 2).double()
    with torch.no_grad():
        for up in change.up:
            up.normal_()
    return change


def update(change: Mixed, stream: Stream) -> torch.Tensor:
    weight = torch.zeros(7, 5, dtype=torch.float64)
    found = change.effective(SLOT, {"weight": weight}, stream)
    assert isinstance(found, Weights)
    return found.tensors["weight"]


@torch.no_grad()
def test_it_is_the_papers_equation(mixed: Mixed) -> None:
    mixed.middle[1].normal_()
    shares = (mixed.mixing[1] / 0.1).exp() / (mixed.mixing[1] / 0.1).exp().sum()
    expected = sum(2.0 * shares[i] * mixed.up[i] @ mixed.middle[1] @ mixed.down for i in range(3))
    torch.testing.assert_close(update(mixed, B), expected, atol=1e-12, rtol=0)


@torch.no_grad()
def test_with_equal_weights_and_matrices_all_tasks_are_equal(mixed: Mixed) -> None:
    assert not torch.equal(update(mixed, A), update(mixed, B))
    mixed.mixing[1].copy_(mixed.mixing[0])
    assert torch.equal(update(mixed, A), update(mixed, B))


@torch.no_grad()
def test_the_rank_of_a_tasks_update_is_at_most_that_of_the_factors(mixed: Mixed) -> None:
    mixed.middle[0].normal_()
    assert torch.linalg.matrix_rank(update(mixed, A)) == 2


def test_the_factors_part_while_they_learn(mixed: Mixed) -> None:
    with torch.no_grad():
        for up in mixed.up:
            up.zero_()
    x = torch.randn(4, 5, dtype=torch.float64)
    mixed(SLOT, {"weight": torch.randn(7, 5, dtype=torch.float64)}, x, [A, B]).square().sum().backward()
    first, second = mixed.up[0].grad, mixed.up[1].grad
    assert first is not None
    assert second is not None
    assert not torch.allclose(first, second)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"ups": 1}, "ups is 1; allowed are 2, 3"), ({"temperature": 0.0}, "temperature is 0.0; allowed are 0.01 to 100")],
)
def test_options_that_make_no_sense_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Options(**options)
