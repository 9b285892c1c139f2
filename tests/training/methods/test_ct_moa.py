"""CT-MoA: adapters of tasks first, then a mixture of all of them for each task."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from ptsa_serve.task_tree import TaskTree
from training.accounting.account import trained
from training.errors import ConfigError
from training.fit import RESUME, FitConfig, fit
from training.methods.ct_moa import CONSTANT, OWN, Mixture
from training.network.checkpoint import load_checkpoint
from training.network.layout import Stream
from training.network.model import ModelConfig, PTSAModel
from training.network.ops import apply
from training.network.planned import Effective, Planned
from training.network.slots import Op, Slot

TASKS = ("segmentation", "depth", "normals", "saliency")


def built(tree: TaskTree, **options: Any) -> PTSAModel:
    """float64, with adapters, routers and constants that matter."""
    torch.manual_seed(0)
    model = PTSAModel(ModelConfig("swin_test", tree, "ct_moa", options, width=8)).eval().double()
    with torch.no_grad():
        for parameter in model.method.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model


def mixtures(model: PTSAModel) -> list[tuple[Slot, Mixture]]:
    pairs = [(slot, model.method.change(slot)) for slot in model.backbone.slots]
    return [(slot, change) for slot, change in pairs if isinstance(change, Mixture)]


def taken(model: PTSAModel, parts: tuple[int, int, int]) -> PTSAModel:
    for _, change in mixtures(model):
        change.parts.copy_(torch.tensor(parts))
    return model


def kinds(model: PTSAModel) -> set[str]:
    found = [
        change.effective(slot, {}, Stream((task,), tooth=True)) for slot, change in mixtures(model) for task in TASKS
    ]
    return {one.kind for one in found if isinstance(one, Op)}


IMAGES = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1)).double() * 255


@torch.no_grad()
def test_a_weight_of_one_on_the_own_adapter_is_the_first_phase(tree: TaskTree) -> None:
    model = built(tree)
    for _, change in mixtures(model):
        for index, task in enumerate(TASKS):
            change.constant[task].copy_(1e6 * torch.eye(4)[index])
    one_hot, first = model(IMAGES), taken(model, OWN)(IMAGES)
    for task in TASKS:
        torch.testing.assert_close(one_hot[task], first[task])


@torch.no_grad()
def test_a_router_of_zeros_is_a_constant_gate(tree: TaskTree) -> None:
    dynamic, static = built(tree, gate="dynamic"), built(tree, gate="static")
    static.load_state_dict(dynamic.state_dict(), strict=False)
    for (_, one), (_, two) in zip(mixtures(dynamic), mixtures(static), strict=True):
        two.parts.copy_(torch.tensor(CONSTANT))
        for task in TASKS:
            one.router[task].zero_()
            two.constant[task].fill_(0.7)  # equal for all
    expected = static(IMAGES)
    for task, raw in dynamic(IMAGES).items():
        torch.testing.assert_close(raw, expected[task])
    assert kinds(dynamic) == {"gate"}
    assert kinds(static) == {"bottleneck"}


@torch.no_grad()
def test_one_wide_bottleneck_is_the_weighted_sum_of_all(tree: TaskTree) -> None:
    for slot, change in mixtures(built(tree)):
        x = torch.randn(2, 3, 5, change.down.shape[1]).double()
        for task in TASKS:
            p = change.constant[task].softmax(-1)
            adapters = zip(change.down.chunk(4), change.up.chunk(4, 1), strict=True)
            expected = x + sum(
                w * F.linear(F.gelu(F.linear(x, down)), up) for w, (down, up) in zip(p, adapters, strict=True)
            )
            op = change.effective(slot, {}, Stream((task,), tooth=True))
            assert isinstance(op, Op)
            assert (apply(op, x, x) - expected).abs().max() < 1e-12


@torch.no_grad()
@pytest.mark.parametrize(("gate", "parts"), [("fading", (0, 300, 700)), ("dynamic", (0, 1000, 0)), ("fading", OWN)])
def test_at_any_time_folded_it_is_the_same(gate: str, parts: tuple[int, int, int], tree: TaskTree) -> None:
    model = taken(built(tree, gate=gate), parts)
    method = model.method
    plan = method.plan(TASKS)
    run = Effective(plan, lambda slot, index: method.effective(slot, plan[slot.name][index].stream))
    flow = Planned(plan, TASKS, "stage", run)
    model.backbone.walk(model.normalised(IMAGES), flow)
    for task, raw in model(IMAGES).items():
        assert (model.decoders[task](flow.taps[task]) - raw).abs().max() < 1e-9 * raw.abs().max()


def test_adapters_train_first_then_what_weighs_them_and_a_faded_run_ends_static(
    fit_config: FitConfig, kill_in_step
) -> None:
    start = fit(replace(fit_config, steps=1, out=fit_config.out / "start"))
    config = replace(fit_config, method="ct_moa", options={"gate": "fading"}, start=start, steps=5, save_every=1)
    kill_in_step(3, lambda: fit(config))
    state = torch.load(config.out / RESUME, weights_only=True)["model"]
    assert state["method.changes.layers/0/tap.parts"].tolist() == [*OWN]
    before = {name.removeprefix("method."): tensor for name, tensor in state.items() if name.startswith("method.")}
    end = load_checkpoint(fit(config))
    assert kinds(end) == {"bottleneck"}
    for name, parameter in end.method.named_parameters():
        if name.endswith((".down", ".up")):
            torch.testing.assert_close(parameter, before[name], atol=1e-3, rtol=1e-3)  # stored in fp16
            assert before[name].any()
        else:
            assert not before[name].any()
            assert parameter.any()


def test_what_weighs_adapters_by_step(tree: TaskTree) -> None:
    model = built(tree, gate="fading")
    found = []
    for phase in model.method.phases(10):
        for step in range(phase.steps):
            phase.begin(step)
            found.append(tuple(mixtures(model)[-1][1].parts.tolist()))
    assert found == [*[OWN] * 5, *[(0, 1000, 0)] * 3, (0, 500, 500), CONSTANT]


@torch.no_grad()
def test_averages_weigh_near_adapters_more(tree: TaskTree) -> None:
    _, change = mixtures(built(tree, average=1.0))[0]
    adapters = [
        torch.cat([down.flatten(), up.flatten()])
        for down, up in zip(change.down.chunk(4), change.up.chunk(4, 1), strict=True)
    ]
    expected = []
    for one in adapters:
        weights = torch.stack([1 / ((one - other).norm() + 1.0) for other in adapters])
        expected.append(sum(w * other for w, other in zip(weights / weights.sum(), adapters, strict=True)))
    change.average(1.0)
    got = zip(change.down.chunk(4), change.up.chunk(4, 1), strict=True)
    for (down, up), one in zip(got, expected, strict=True):
        torch.testing.assert_close(torch.cat([down.flatten(), up.flatten()]), one)


def test_adapters_are_averaged_once_before_they_are_mixed(tree: TaskTree, monkeypatch: pytest.MonkeyPatch) -> None:
    method = built(tree, average=1.0).method
    calls = []
    monkeypatch.setattr(Mixture, "average", lambda self, c: calls.append(c))
    for phase in method.phases(6):
        for step in range(phase.steps):
            phase.begin(step)
            phase.begin(step)
    assert calls == [1.0] * 4


def test_the_penalty_is_least_where_all_adapters_are_read_alike(tree: TaskTree) -> None:
    model = built(tree, gate="dynamic", balance=0.5).train()
    model(IMAGES)
    uneven = model.method.penalties(0.5)
    for _, change in mixtures(model):
        for router in change.router.values():
            torch.nn.init.zeros_(router)
    model(IMAGES)
    even = model.method.penalties(0.5)
    for task in TASKS:
        assert even[task].item() == pytest.approx(-0.5 * math.log(4))
        assert uneven[task] > even[task]
    assert model.method.penalties(0.5) == {}


@pytest.mark.parametrize(("gate", "own"), [("static", 64), ("dynamic", 23_040), ("fading", 23_104)])
def test_counts_on_swin_tiny(gate: str, own: int, tree: TaskTree) -> None:
    with torch.device("meta"):
        model = PTSAModel(ModelConfig("swin_tiny", tree, "ct_moa", {"gate": gate}))
    counts = trained(model)
    assert (counts["adapters"], counts["extras"]) == (783_360 + own, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gate": "top2"}, "gate is 'top2'; allowed are static, dynamic, fading"),
        ({"first": 1.0}, "first is 1.0; it is a part of the run"),
        ({"reduction": 0}, "reduction is 0; allowed are 1 to 1024"),
        ({"balance": -1.0}, "balance is -1.0; allowed are 0"),
        ({"average": -1.0}, "average is -1.0; allowed are 0"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict, message: str, tree: TaskTree) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelConfig("swin_test", tree, "ct_moa", options)
