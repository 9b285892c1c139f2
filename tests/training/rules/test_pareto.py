"""A front of models: every preference is one network between the members, and to prefer a task must not hurt it."""

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ptsa_serve.task_tree import TaskTree
from training.accounting.account import trained
from training.errors import CheckpointError, ConfigError
from training.evaluate import EvaluateConfig
from training.fit import FitConfig, fit
from training.methods import METHODS, set_anew
from training.network.checkpoint import load_checkpoint, save_checkpoint
from training.network.model import ModelConfig, PTSAModel
from training.network.simplex import Simplex
from training.rules.pareto import Pareto, disorder

TASKS = ("segmentation", "depth", "normals", "saliency")


def test_a_loss_that_falls_as_its_task_is_preferred_costs_nothing() -> None:
    parts = [0.7, 0.1, 0.2]
    assert disorder(torch.tensor([1.0, 3.0, 2.0]), parts) == 0
    # In order of 0.1, 0.2, 0.7 the losses are 1, 3, 2: one rise, of 2, and one fall.
    found = disorder(torch.tensor([2.0, 1.0, 3.0]), parts)
    assert found == pytest.approx(math.log((math.exp(2) + 1) / 2))
    # Where the rise comes from, gradients push both ends of it.
    losses = torch.tensor([2.0, 1.0, 3.0], requires_grad=True)
    disorder(losses, parts).backward()
    assert losses.grad is not None
    assert losses.grad[2] > 0 > losses.grad[1]
    # What is preferred alike has no order.
    assert disorder(torch.tensor([1.0, 2.0]), [0.5, 0.5]) == 0
    assert disorder(torch.tensor([1.0]), [0.5]) == 0


class Segment(nn.Module):
    """A point between two members, and the losses (x - c_t)²."""

    def __init__(self) -> None:
        super().__init__()
        self.members = nn.Parameter(torch.tensor([0.4, 0.5]))
        self.method = SimpleNamespace(simplex=Simplex(("a", "b"), None))
        self.points: list[tuple[float, ...]] = []

    def losses(self) -> dict[str, Tensor]:
        self.points.append(self.method.simplex.point)
        x = (self.members * torch.tensor(self.points[-1])).sum()
        return {"a": (x + 1).square(), "b": (x - 1).square()}


@pytest.mark.parametrize("coefficient", [0.0, 1.0])
def test_two_quadratics_are_traded_as_their_front_does(steps: Any, coefficient: float) -> None:
    """The best for a is x = a_b - a_a: a segment from one minimum to the other, losses 4 a_b² and 4 a_a²."""
    model, rule = Segment(), Pareto(concentration=1.0, window=4, coefficient=coefficient)
    rule.bind(model, {})
    values = steps(rule, model, lambda m: m.losses(), lr=0.2, optimizer=torch.optim.SGD).take(150)
    torch.testing.assert_close(model.members.detach(), torch.tensor([-1.0, 1.0]), atol=0.01, rtol=0)
    assert model.method.simplex.point == (0.5, 0.5)  # at rest it is where it was
    drawn = torch.tensor(model.points).mean(0)
    torch.testing.assert_close(drawn, torch.full((2,), 0.5), atol=0.05, rtol=0)
    assert values.keys() == {"a", "b"}


def _model(method: str, **options: Any) -> PTSAModel:
    options |= {"rank": 2} if "rank" in METHODS[method].options.__dataclass_fields__ else {}
    return PTSAModel(ModelConfig("swin_test", TaskTree.shared(TASKS), method, options, width=8)).eval()


@pytest.mark.parametrize("method", ["palora", "pareto"])
@torch.no_grad()
def test_a_corner_is_its_member_to_the_last_bit(method: str, tmp_path: Path) -> None:
    """Without a word of the others: adapters are those of LoRA, copies a network that was trained alone."""
    model = _model(method)
    for parameter in model.method.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.1)
    save_checkpoint(model, tmp_path / "model.safetensors", info={})
    corner = load_checkpoint(tmp_path / "model.safetensors", {"preference": {"normals": 5}})
    alone = _model("lora" if method == "palora" else "multi_task")
    tensors = {name: t for name, t in corner.state_dict().items() if not name.startswith("method.")}
    for slot in corner.backbone.slots:
        change: Any = corner.method.change(slot)
        if method == "pareto" and change:
            of = {role: f"backbone.trunk.{name}" for role, name in slot.tensors.items()}
            tensors |= {of[role]: tensor for role, tensor in change.members[2].named_parameters()}
        elif change:
            path = f"method.changes.{slot.name.replace('.', '/')}"
            tensors |= {f"{path}.up.0": change.up[2], f"{path}.down.0": change.down[2]}
    alone.load_state_dict(tensors)
    images = torch.rand(1, 3, 64, 64) * 255
    for task, raw in alone(images).items():
        assert torch.equal(corner(images)[task], raw)
    slot = next(slot for slot in corner.backbone.slots if slot.kind == "fc1")
    found: Any = corner.method.effective(slot, corner.method.layout.streams(corner.backbone.slots)[slot.name][0])
    if method == "pareto":
        assert torch.equal(found.tensors["weight"], alone.backbone.tensors(slot)["weight"])
    else:
        assert found.product.up.shape[1] == 2  # of one member alone


@torch.no_grad()
def test_products_are_mixed_not_factors() -> None:
    model = _model("palora", preference={"depth": 1, "saliency": 3})
    slot = next(slot for slot in model.backbone.slots if slot.kind == "proj")
    change: Any = model.method.change(slot)
    for up in change.up:
        nn.init.normal_(up)
    base = model.backbone.tensors(slot)
    found: Any = change.effective(slot, base, model.method.layout.streams([slot])[slot.name][0])
    sums = 0.25 * change.up[1] @ change.down[1] + 0.75 * change.up[3] @ change.down[3]
    torch.testing.assert_close(found.tensors["weight"], base["weight"] + 4.0 * sums)


def test_counts_are_t_times_those_of_one() -> None:
    def adapters(method: str, **options: Any) -> int:
        with torch.device("meta"):
            return trained(PTSAModel(ModelConfig("swin_tiny", TaskTree.shared(TASKS), method, options)))["adapters"]

    assert adapters("palora", rank=4) == 4 * 16 * 4 * 4416 == 4 * adapters("lora", rank=4)
    # Four trunks without a final norm.
    assert adapters("pareto") == 4 * 27_517_818


def test_what_may_be_set_anew_is_said_by_the_method() -> None:
    assert set_anew("pareto", {}, {"preference": {"depth": 1}}) == {"preference": {"depth": 1}}
    with pytest.raises(ConfigError, match="'rank' of a trained palora cannot be set; what can is preference"):
        set_anew("palora", {}, {"rank": 3})
    with pytest.raises(ConfigError, match="'preference' of a trained ptsa cannot be set; what can is nothing"):
        set_anew("ptsa", {}, {"preference": {"depth": 1}})
    assert {name for name, spec in METHODS.items() if spec.settings} == {"palora", "pareto"}


def test_a_preference_that_a_checkpoint_cannot_have_is_said_as_such(tmp_path: Path) -> None:
    save_checkpoint(_model("pareto"), tmp_path / "model.safetensors", info={})
    with pytest.raises(ConfigError, match="preference names edges"):
        load_checkpoint(tmp_path / "model.safetensors", {"preference": {"edges": 1}})
    assert EvaluateConfig(tmp_path / "model.safetensors", {"nyu": tmp_path}).settings == {}
    assert not issubclass(ConfigError, CheckpointError)


def test_a_method_without_members_is_refused(fit_config: FitConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--rule pareto mixes the members of a method, .* this one has none; take"):
        fit(replace(fit_config, rule="pareto"))
    with pytest.raises(ConfigError, match=r"--rule pareto: concentration is 0, window 3, coefficient 1.0; allowed"):
        replace(fit_config, rule="pareto", rule_options={"concentration": 0})
