"""A rule is a file of its own: what the loop lends it is enough, and the loop knows none by name."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins import MixedPrecision
from torch import Tensor, nn

from training.errors import ConfigError
from training.fit import RESULT, RESUME, FitConfig, fit
from training.network.checkpoint import read_info
from training.phases import Phase
from training.rules import RULES
from training.rules.base import Batch, Turn
from training.rules.weighted_sum import WeightedSum
from training.running.stepping import Optimisation
from training.running.turn import StepTurn


class EqualNorms(WeightedSum):
    """Made up: every task pulls as hard as any other; the decoders first, and the stored heads are rounded."""

    needs_task_grads = True

    def __init__(self) -> None:
        self.seen = torch.zeros(())

    def phases(self, steps: int) -> list[Phase]:
        return [Phase("decoders", 2, lambda name: name.startswith("decoders.")), Phase("all", steps - 2)]

    def step(self, turn: Turn) -> dict[str, float]:
        total: dict[str, Tensor] = {}
        for batch in turn.batches:
            for gradients in turn.task_grads(turn.losses(batch)).values():
                reached = {name: gradient for name, gradient in gradients.items() if gradient is not None}
                norm = torch.stack([gradient.norm() for gradient in reached.values()]).norm()
                for name, gradient in reached.items():
                    total[name] = total.get(name, 0) + gradient / norm.clamp_min(1e-12)
        turn.write(total)
        turn.clip_and_step()
        self.seen += 1
        return {**turn.values, turn.phase: 1.0}

    def finalize(self, model: nn.Module) -> None:
        for parameter in model.decoders.parameters():  # pyright: ignore
            parameter.data.mul_(64).round_().div_(64)

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = state["seen"]


@pytest.fixture
def ruled(fit_config: FitConfig, monkeypatch: pytest.MonkeyPatch) -> FitConfig:
    monkeypatch.setitem(RULES, "equal_norms", EqualNorms)
    return replace(fit_config, rule="equal_norms", accumulate=2, batches={"nyu": 1, "ccp": 1})


def _state(config: FitConfig) -> dict[str, Any]:
    return torch.load(config.out / RESUME, weights_only=True)


def test_a_rule_made_up_on_the_spot_trains_resumes_and_finishes(ruled: FitConfig, kill_in_step, tmp_path) -> None:
    whole = fit(ruled)
    assert read_info(whole)["rule"] == "equal_norms"
    broken = replace(ruled, out=tmp_path / "broken")
    kill_in_step(5, lambda: fit(broken))
    assert _state(broken)["step"] == 4
    assert fit(broken).read_bytes() == whole.read_bytes()
    assert _state(broken)["rule"]["seen"] == ruled.steps
    # The stored model is finished, the one that trains is not.
    from training.network.checkpoint import read_tensors

    stored, trained = read_tensors(whole), _state(ruled)["model"]
    name = "decoders.depth.head.bias"
    assert torch.equal(stored[name], (trained[name] * 64).round() / 64)
    assert not torch.equal(stored[name], trained[name])


def test_a_phase_trains_what_it_names_alone(ruled: FitConfig) -> None:
    fit(replace(ruled, steps=2, out=ruled.out / "decoders"))
    first = _state(replace(ruled, out=ruled.out / "decoders"))["model"]
    fit(replace(ruled, steps=3, out=ruled.out / "more"))
    more = _state(replace(ruled, out=ruled.out / "more"))["model"]
    torch.manual_seed(0)
    weight = "backbone.trunk.layers.0.blocks.0.mlp.fc1.weight"
    start = _state_at_start(ruled)[weight]
    assert torch.equal(first[weight], start)
    assert not torch.equal(more[weight], start)


def _state_at_start(config: FitConfig) -> dict[str, Tensor]:
    from training.build import build

    torch.manual_seed(config.seed)
    return build(config).state_dict()


def test_phases_must_fill_the_run(ruled: FitConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EqualNorms, "phases", lambda self, steps: [Phase("short", steps - 1)])
    with pytest.raises(ValueError, match=r"the phases have \[5\] steps, the run has 6"):
        fit(ruled)


def test_a_rule_that_is_not_known_is_refused(fit_config: FitConfig) -> None:
    with pytest.raises(ConfigError, match="--rule 'famo' is unknown; known are weighted_sum"):
        replace(fit_config, rule="famo")


class TwoTasks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 1), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.trunk(x).tanh()
        return {"a": self.a(y), "b": self.b(y)}


@pytest.fixture(params=["32-true", "16-mixed"])
def run(request: pytest.FixtureRequest) -> Optimisation:
    """A float network; with `16-mixed` losses are scaled as they are in fp16."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    plugin = MixedPrecision("16-mixed", device="cpu", scaler=scaler)
    plugins = [plugin] if request.param == "16-mixed" else []
    torch.manual_seed(0)
    model = TwoTasks()
    fabric = Fabric(accelerator="cpu", plugins=plugins)
    return Optimisation(fabric, model, torch.optim.SGD(model.parameters(), lr=0.1), max_norm=1e6)


def _turn(run: Optimisation, *batches: Batch) -> StepTurn:
    def losses(x: Tensor) -> dict[str, Tensor]:
        return {task: y.float().square().mean() for task, y in run.model(x).items()}

    return StepTurn(run, batches, losses, {"a": 1.0, "b": 3.0}, "train")


def _step(run: Optimisation, turn: StepTurn, how: str) -> dict[str, Tensor]:
    """The parameters after one step, whose gradients come from `backward`, or from `task_grads` and `write`."""
    for batch in turn.batches:
        losses = turn.losses(batch)
        if how == "backward":
            turn.backward(turn.weights["a"] * losses["a"] + turn.weights["b"] * losses["b"])
            continue
        total: dict[str, Tensor] = {}
        for task, gradients in turn.task_grads(losses).items():
            for name, gradient in gradients.items():
                if gradient is not None:
                    total[name] = total.get(name, 0) + turn.weights[task] * gradient
        turn.write(total)
    turn.clip_and_step()
    return {name: p.detach().clone() for name, p in run.module.named_parameters()}


def test_gradients_of_tasks_add_up_to_those_of_the_sum(run: Optimisation) -> None:
    start = {name: t.clone() for name, t in run.module.state_dict().items()}
    batch = Batch("photo 1", torch.randn(5, 3))
    one = _step(run, _turn(run, batch), "backward")
    run.module.load_state_dict(start)
    two = _step(run, _turn(run, batch), "write")
    for name in one:
        assert not torch.equal(one[name], start[name])
        torch.testing.assert_close(one[name], two[name], atol=1e-4, rtol=1e-3)  # the graph is in fp16, the sums are not


def test_a_parameter_that_a_task_does_not_reach_has_no_gradient_of_it(run: Optimisation) -> None:
    turn = _turn(run, Batch("photo 1", torch.randn(5, 3)))
    gradients = turn.task_grads(turn.losses(turn.batches[0]))
    assert gradients["a"]["b.weight"] is None
    assert gradients["b"]["a.bias"] is None
    assert gradients["a"]["trunk.weight"] is not None
    assert all(parameter.grad is None for parameter in run.module.parameters())


def test_the_result_of_a_rule_is_in_its_place(ruled: FitConfig) -> None:
    assert fit(ruled) == ruled.out / RESULT
