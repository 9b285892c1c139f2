"""One optimiser step in fp16, with a scaler of the CPU, which works as the GPU's does."""

import pytest
import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins import MixedPrecision
from torch import nn

from training.errors import ConfigError, DivergedError
from training.running.stepping import PATIENCE, Optimisation, make_fabric


@pytest.fixture
def run() -> Optimisation:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    fabric = Fabric(accelerator="cpu", plugins=[MixedPrecision("16-mixed", device="cpu", scaler=scaler)])
    torch.manual_seed(0)
    model = nn.Linear(4, 1, bias=False)
    return Optimisation(fabric, model, torch.optim.SGD(model.parameters(), lr=0.1), max_norm=1.0)


def _scale(run: Optimisation) -> float:
    return run.state()["scaler"]["scale"]


def _backward(run: Optimisation, loss: float) -> None:
    run.fabric.backward((run.model(torch.ones(1, 4)) * loss).float().sum())


def test_a_step_whose_fp16_gradients_overflow_is_left_out_and_the_scale_falls(run: Optimisation) -> None:
    before = run.model.weight.detach().clone()
    _backward(run, 100.0)  # times 2^16 it is more than fp16 can hold
    run.clip_and_step("photos 1")
    assert torch.equal(run.model.weight, before)
    assert _scale(run) == 2.0**15
    for _ in range(9):
        _backward(run, 100.0)
        run.clip_and_step("photos 2")
    assert not torch.equal(run.model.weight, before)
    assert run.model.weight.isfinite().all()


def test_gradients_that_overflow_at_every_scale_are_an_error(run: Optimisation) -> None:
    for _ in range(PATIENCE - 1):
        _backward(run, float("inf"))
        run.clip_and_step("photos 6")
    _backward(run, float("inf"))
    with pytest.raises(DivergedError, match=rf"gradients of photos 7 are not finite in {PATIENCE} steps in a row"):
        run.clip_and_step("photos 7")


def test_the_scale_is_part_of_what_a_run_resumes_from(run: Optimisation) -> None:
    for _ in range(3):
        _backward(run, float("inf"))
        run.clip_and_step("")
    state = run.state()
    _backward(run, float("inf"))
    run.clip_and_step("")
    run.restore(state)
    assert (_scale(run), run.state()["overflows"]) == (2.0**13, 3)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_fp16_is_refused_where_it_would_quietly_become_bf16() -> None:
    with pytest.raises(ConfigError, match="--precision 16-mixed needs a GPU; on a CPU take bf16-mixed or 32-true"):
        make_fabric("16-mixed")
