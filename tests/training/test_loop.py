"""The loop on a network of two layers: what a step is made of, and what is stored of it."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.fabric import Fabric
from torch import Tensor, nn

from training.phases import Phase
from training.rules.base import Batch
from training.rules.weighted_sum import WeightedSum
from training.running.loop import Plan, Work, train
from training.running.stepping import Optimisation

PHOTOS = torch.randn(64, 3, generator=torch.Generator().manual_seed(1))
PASSES = 8  # photos that pass together


def _run(ema: float = 0.0, steps: int = 6) -> Optimisation:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    group = {"params": list(model.parameters()), "peak": 0.1}
    optimizer = torch.optim.AdamW([group])
    return Optimisation(Fabric(accelerator="cpu"), model, optimizer, max_norm=0.5, ema=ema)


def _batches(size: int, accumulate: int, first: int, last: int) -> Iterator[list[Batch]]:
    for step in range(first, last):
        parts = range(step * accumulate, (step + 1) * accumulate)
        yield [
            Batch(f"pass {n}", PHOTOS[[i % 64 for i in range(n * size, (n + 1) * size)]], 1 / accumulate) for n in parts
        ]


def _train(run: Optimisation, out: Path, *, accumulate: int = 1, steps: int = 6, **work: object) -> None:
    def losses(x: Tensor) -> dict[str, Tensor]:
        y = run.model(x)
        return {"near": (y - 1).square().mean(), "far": (y + 2).abs().mean()}

    lent = {
        "batches": partial(_batches, PASSES // accumulate, accumulate),
        "losses": losses,
        "weights": {"near": 1.0, "far": 0.5},
        "save": lambda: None,
    }
    train(run, WeightedSum(), Plan("test", out, steps, 1, 0, 4, 2), Work(**lent | work))  # pyright: ignore


@pytest.mark.parametrize("accumulate", [2, 4])
def test_accumulated_passes_are_one_batch(accumulate: int, tmp_path: Path) -> None:
    whole, parts = _run(), _run()
    _train(whole, tmp_path)
    _train(parts, tmp_path, accumulate=accumulate)
    for one, two in zip(whole.module.parameters(), parts.module.parameters(), strict=True):
        torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-5)


@given(st.integers(1, 30), st.sampled_from([0.5, 0.9, 0.999]))
def test_the_average_is_that_of_its_formula(steps: int, decay: float) -> None:
    run = _run(decay)
    wanted = [p.detach().clone() for p in run.module.parameters()]
    for step in range(1, steps + 1):
        with torch.no_grad():
            for parameter in run.module.parameters():
                parameter.normal_()
        run.count()
        d = min(decay, 1 - step ** (-2 / 3))
        wanted = [d * old + (1 - d) * new.detach() for old, new in zip(wanted, run.module.parameters(), strict=True)]
    for found, tensor in zip(run.result.parameters(), wanted, strict=True):
        torch.testing.assert_close(found, tensor, atol=1e-5, rtol=1e-5)


def test_without_an_average_the_result_is_the_model() -> None:
    run = _run()
    assert run.result is run.module


def test_validation_comes_before_saving_and_both_at_the_end(tmp_path: Path) -> None:
    run, done = _run(), []
    _train(
        run,
        tmp_path,
        steps=5,
        save=lambda: done.append(("save", run.step)),
        validate=lambda writer: done.append(("validate", run.step)),
    )
    assert done == [("validate", 2), ("validate", 4), ("save", 4), ("validate", 5), ("save", 5)]


def test_a_step_draws_the_same_wherever_the_run_began(tmp_path: Path) -> None:
    drawn: dict[int, float] = {}

    def losses(run: Optimisation, x: Tensor) -> dict[str, Tensor]:
        value = float(torch.rand(()))
        assert drawn.setdefault(run.step, value) == value
        return {"near": run.model(x).square().mean()}

    whole, late = _run(), _run()
    _train(whole, tmp_path, losses=partial(losses, whole))
    late.step = 3
    torch.manual_seed(99)
    _train(late, tmp_path, losses=partial(losses, late))
    assert len(set(drawn.values())) == 6


def test_phases_of_what_is_trained_hold_beside_the_rules(tmp_path: Path) -> None:
    class Late(WeightedSum):
        def phases(self, steps: int) -> list[Phase]:
            return [Phase("weights", 2, lambda name: name.endswith("weight")), Phase("all", steps - 2)]

    begun: list[tuple[str, int]] = []
    found: list[dict[str, bool]] = []

    def named(name: str, steps: int, layer: str) -> Phase:
        return Phase(name, steps, lambda name: name.startswith(layer), lambda step: begun.append((name, step)))

    run = _run()

    def losses(x: Tensor) -> dict[str, Tensor]:
        found.append({name: p.requires_grad for name, p in run.module.named_parameters()})
        return {"near": (run.model(x) - 1).square().mean()}

    work = Work(partial(_batches, PASSES, 1), losses, {"near": 1.0}, lambda: None)
    work = replace(work, phases=lambda steps: [named("first", 4, "0."), named("second", steps - 4, "2.")])
    train(run, Late(), Plan("test", tmp_path, 6, 1, 0, 4), work)
    trained = [{name for name, trains in step.items() if trains} for step in found]
    both = {"0.weight", "0.bias"}, {"2.weight", "2.bias"}
    assert trained == [{"0.weight"}, {"0.weight"}, both[0], both[0], both[1], both[1]]
    assert begun == [("first", 0), ("first", 1), ("first", 2), ("first", 3), ("second", 0), ("second", 1)]
    with pytest.raises(ValueError, match=r"the phases have \[4\] steps, the run has 6"):
        train(
            _run(),
            Late(),
            Plan("test", tmp_path, 6, 1, 0, 4),
            replace(work, phases=lambda _: [named("short", 4, "0.")]),
        )


def test_a_part_that_a_phase_leaves_alone_is_in_eval_mode_and_its_rate_is_a_part_of_the_runs(tmp_path: Path) -> None:
    def course(rate: float) -> tuple[list[float], list[tuple[bool, ...]]]:
        run = _run()
        rates: list[float] = []
        modes: list[tuple[bool, ...]] = []

        def losses(x: Tensor) -> dict[str, Tensor]:
            rates.append(run.optimizer.param_groups[0]["lr"])
            modes.append(tuple(module.training for module in run.module.children()))
            return {"near": (run.model(x) - 1).square().mean(), "far": run.model(x).abs().mean()}

        last = Phase("last", 2, lambda name: name.startswith("2."), rate=rate)
        _train(run, tmp_path, losses=losses, phases=lambda steps: [Phase("all", steps - 2), last])
        return rates, modes

    (whole, modes), (part, _) = course(1.0), course(0.01)
    assert part == pytest.approx([*whole[:4], *(0.01 * rate for rate in whole[4:])])
    assert modes == 4 * [(True, True, True)] + 2 * [(False, True, True)]
