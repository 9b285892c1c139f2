"""Free Sinewich: one matrix, read at a frequency of each task's own."""

import pytest
import torch
from torch import Tensor, nn

from training.errors import ConfigError
from training.methods.sinewich import Options, Sine, lowpass
from training.network.layout import Stream
from training.network.slots import Slot, Weights

SLOT = Slot("fc", "fc1", "linear", stage=0, tensors={"weight": "fc.weight"})
STREAMS = [Stream(("a", "b")), Stream(("a",), tooth=True), Stream(("b",), tooth=True)]


def made(**options) -> Sine:
    torch.manual_seed(0)
    change = Sine(Options(**options), torch.randn(9, 8), STREAMS, 2).double()
    nn.init.normal_(change.up)
    return change


def update(change: Sine, stream: Stream) -> Tensor:
    found = change.effective(SLOT, {"weight": torch.zeros(9, 8, dtype=torch.float64)}, stream)
    assert isinstance(found, Weights)
    return found.tensors["weight"]


def test_at_the_start_it_is_the_backbones_own_tensor() -> None:
    change, weight = Sine(Options(), torch.randn(9, 8), STREAMS, 2), torch.randn(9, 8)
    found = change.effective(SLOT, {"weight": weight}, STREAMS[1])
    assert isinstance(found, Weights)
    assert found.tensors["weight"] is weight


def test_it_is_the_papers_equation() -> None:
    change = made(sine_scale=0.5)
    matrix = change.up @ change.core @ change.down
    for number, stream in enumerate(STREAMS):
        frequency = 5.0 * (change.theta[number].tanh() + 2.0)
        expected = 0.5 * lowpass((frequency * matrix).sin())
        torch.testing.assert_close(update(change, stream), expected.detach(), atol=1e-12, rtol=0)


def test_equal_frequencies_make_tasks_equal_and_others_do_not() -> None:
    change = made()
    assert not torch.allclose(update(change, STREAMS[1]), update(change, STREAMS[2]))
    change.theta[2].data.copy_(change.theta[1].data)
    assert torch.equal(update(change, STREAMS[1]), update(change, STREAMS[2]))


def test_at_low_frequencies_it_is_the_low_rank_matrix_itself() -> None:
    change = made(gain=1e-5)
    frequency = 1e-5 * (change.theta[1].tanh() + 2.0)
    linear = (frequency * lowpass(change.up @ change.core @ change.down)).detach()
    torch.testing.assert_close(update(change, STREAMS[1]), linear, atol=0, rtol=1e-6)


def test_the_sine_raises_the_rank() -> None:
    assert torch.linalg.matrix_rank(update(made(), STREAMS[1])) > 2


def test_frequencies_stay_in_their_band() -> None:
    change = made(gain=1e-6, offset=3.0)
    matrix = lowpass(change.up @ change.core @ change.down).detach()
    for theta, frequency in ((-1e3, 2e-6), (1e3, 4e-6)):
        change.theta[1].data.fill_(theta)
        torch.testing.assert_close(update(change, STREAMS[1]), frequency * matrix, atol=0, rtol=1e-6)


def test_the_low_pass_keeps_what_is_constant_and_takes_what_alternates() -> None:
    flat = lowpass(torch.ones(20, 20).double())[3:-3, 3:-3]
    torch.testing.assert_close(flat, torch.ones_like(flat), atol=1e-12, rtol=0)
    stripes = torch.ones(20, 20).double()
    stripes[::2] = -1
    assert lowpass(stripes)[3:-3, 3:-3].abs().max() < 0.02


@pytest.mark.parametrize("options", [{"gain": 0.0}, {"offset": 0.5}])
def test_frequencies_below_nought_are_refused(options: dict) -> None:
    with pytest.raises(ConfigError, match="gain must be above 0 and offset 1 or more"):
        Options(**options)
