"""TAPS: gates that shut leave the backbone, gates that open make a branch, and their price reaches every loss."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ptsa_serve.task_tree import TaskTree
from training.accounting.account import effective_tensors
from training.fit import FitConfig, fit
from training.methods.taps import Gated
from training.network.checkpoint import load_checkpoint, save_checkpoint
from training.network.model import ModelConfig, PTSAModel
from training.network.plan import Plan, make_plan
from training.rules import RULES
from training.rules.base import Turn
from training.rules.weighted_sum import WeightedSum

TASKS = ("depth", "normals", "saliency")
SLOTS = 4 * (1 + 1 + 2 + 1)


def new(**options: object) -> PTSAModel:
    model = PTSAModel(ModelConfig("swin_test", TaskTree.shared(TASKS), "taps", options, width=8)).eval()
    with torch.no_grad():
        for name, parameter in model.method.named_parameters():
            if ".gates." not in name:
                parameter.normal_(std=0.1)
    return model


def begun(config: FitConfig, folder: Path) -> Path:
    """A checkpoint to start from."""
    whole = PTSAModel(ModelConfig("swin_test", TaskTree.parse(config.tree), "multi_task", width=8))
    save_checkpoint(whole, folder / "start.safetensors", info={})
    return folder / "start.safetensors"


def gates(model: PTSAModel) -> dict[str, Gated]:
    return {slot.name: found for slot in model.backbone.slots if isinstance(found := model.method.change(slot), Gated)}


def shut(model: PTSAModel, which: set[tuple[int, str]]) -> None:
    """Shut the gates of these (number of the slot, task)."""
    with torch.no_grad():
        for number, change in enumerate(gates(model).values()):
            for task in TASKS:
                change.gates[task].fill_(0.0 if (number, task) in which else 0.15)


def plan_of(model: PTSAModel) -> Plan:
    return make_plan(model.backbone.slots, model.method.layout, model.method.version)


ALL = {(number, task) for number in range(SLOTS) for task in TASKS}


def test_with_every_gate_shut_it_is_the_backbone_bit_for_bit() -> None:
    model = new()
    shut(model, ALL)
    images = torch.rand(1, 3, 64, 96) * 255
    maps = model.backbone.maps(model.normalised(images))
    with torch.no_grad():
        for task, beside in model(images).items():
            raw = model.decoders[task](maps)
            # One task at a time: products of more rows round otherwise on some CPUs.
            assert torch.equal(model(images, [task])[task], raw)
            assert torch.allclose(beside, raw, rtol=0, atol=1e-6)
    plan = plan_of(model)
    assert {len(nodes) for nodes in plan.values()} == {1}
    own = {id(tensor) for tensor in model.backbone.trunk.parameters()}
    for slot in model.backbone.slots:
        found = model.method.effective(slot, plan[slot.name][0].stream)
        base = model.backbone.tensors(slot)
        assert {t.data_ptr() for t in found.tensors.values()} == {t.data_ptr() for t in base.values()}  # pyright: ignore
    assert {id(t) for f in effective_tensors(model, plan).values() for t in f.tensors.values()} == own  # pyright: ignore


@pytest.mark.parametrize("open_", [True, False])
@pytest.mark.parametrize("delta", ["dense", "low_rank"])
def test_a_gate_learns_by_the_gradient_along_its_difference_open_or_shut(delta: str, open_: bool) -> None:
    model = new(delta=delta, rank=2).double()
    images = torch.rand(1, 3, 64, 64, dtype=torch.float64) * 255

    def learn() -> None:
        model.zero_grad()
        model(images, ["depth"])["depth"].square().sum().backward()

    name, change = list(gates(model).items())[5]
    gate, learnt = change.gates["depth"], (change.delta if delta == "dense" else change.up)["depth"]
    gate.data.fill_(0.15 if open_ else 0.0)
    learn()
    assert gate.grad is not None
    found = gate.grad.clone()
    assert bool(learnt.grad.any()) == open_
    # The same network with E as the backbone's own weight: <dL/dE, D>.
    difference = (learnt if delta == "dense" else 4.0 * learnt @ change.down["depth"]).detach()
    weight = model.backbone.trunk.get_parameter(f"{name}.weight")
    weight.data += difference * open_
    gate.data.fill_(0.0)
    learn()
    assert weight.grad is not None
    torch.testing.assert_close(found, (weight.grad * difference).sum())


def test_at_the_first_step_nothing_but_the_penalty_moves_a_gate() -> None:
    model = PTSAModel(ModelConfig("swin_test", TaskTree.shared(TASKS), "taps", width=8))
    model(torch.rand(1, 3, 64, 64) * 255)["depth"].sum().backward()
    for change in gates(model).values():
        assert change.gates["depth"].grad == 0
        assert change.delta["depth"].grad.any()


@settings(max_examples=10, deadline=None)
@given(open_=st.sets(st.sampled_from(sorted(ALL)), max_size=12))
def test_tasks_part_at_the_first_gate_that_one_of_them_opened(open_: set[tuple[int, str]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        from training.backbones.swin import SWINS

        patch.setitem(SWINS, "swin_test", {"embed_dim": 12, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 2, 3)})
        model = new()
    shut(model, ALL - open_)
    plan = plan_of(model)
    for number, name in enumerate(gates(model)):
        own = {task for task in TASKS if any((before, task) in open_ for before in range(number + 1))}
        assert len(plan[name]) == len(own) + (len(own) < len(TASKS))
    deployed = {id(t): t.numel() for f in effective_tensors(model, plan).values() for t in f.tensors.values()}  # pyright: ignore
    sizes = [model.backbone.trunk.get_parameter(f"{name}.weight").numel() for name in gates(model)]
    everyone = [number for number in range(SLOTS) if all((number, task) in open_ for task in TASKS)]
    backbone = sum(p.numel() for p in model.backbone.trunk.parameters())
    # A weight that every task replaced is nobody's.
    assert sum(deployed.values()) == backbone + sum(sizes[n] for n, _ in open_) - sum(sizes[n] for n in everyone)


def test_the_first_gates_cost_most_and_their_mean_is_the_penalty() -> None:
    method = new(penalty=2.0).method
    costs = list(method.costs.values())  # pyright: ignore
    assert costs[0] == 1
    assert costs == sorted(costs, reverse=True)
    # fc2 of the last block, 36 C² of it: the last of what is computed, 4 C² of 12 C², at a 64th of the tokens.
    total = sum(blocks * 12 * (12 * 2**stage) ** 2 / 4**stage for stage, blocks in enumerate((1, 1, 2, 1)))
    assert costs[-1] == pytest.approx(4 * 96**2 / 64 / total)
    assert set(method.penalties(1.0)) == set(TASKS)
    assert method.penalties(1.0)["depth"].item() == pytest.approx(2 * 0.15 * sum(costs) / len(costs))
    assert new(weigh="layers").method.penalties(0.5)["depth"].item() == pytest.approx(0.15)
    assert method.penalties(0.05) == {}


def test_the_penalty_is_in_each_loss_once_a_step_whatever_the_rule(
    fit_config: FitConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, float]] = []

    class Watch(WeightedSum):
        def step(self, turn: Turn) -> dict[str, float]:
            seen.append(super().step(turn))
            return seen[-1]

    monkeypatch.setitem(RULES, "watch", Watch)
    start = begun(fit_config, tmp_path)
    run = replace(
        fit_config, method="taps", start=start, steps=1, rule="watch", accumulate=2, batches={"nyu": 1, "ccp": 1}
    )
    for number, penalty in enumerate((0.0, 8.0)):
        options = {"penalty": penalty, "warmup": 0.0, "weigh": "layers"}
        fit(replace(run, options=options, out=tmp_path / str(number)))
    for task, value in seen[0].items():
        assert seen[1][task] - value == pytest.approx(8 * 0.15, abs=1e-5), task


def test_a_penalty_beyond_all_measure_shuts_every_gate(fit_config: FitConfig, tmp_path: Path) -> None:
    start = begun(fit_config, tmp_path)
    options = {"penalty": 1e4, "warmup": 0.0}
    path = fit(replace(fit_config, method="taps", options=options, start=start, steps=2, rate=0.1))
    model = load_checkpoint(path)
    assert all(change.version(stream) is None for change in gates(model).values() for stream in _streams(model))
    assert any(p.any() for name, p in model.method.named_parameters() if ".delta." in name)
    assert {len(nodes) for nodes in plan_of(model).values()} == {1}


def _streams(model: PTSAModel) -> tuple:
    return model.method.layout.streams(model.backbone.slots)[model.backbone.slots[-1].name]
