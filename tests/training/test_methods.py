"""What holds for every method of the registry, whatever it is."""

import copy
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ptsa_serve.task_tree import TaskTree
from training.backbones import build_backbone
from training.errors import ConfigError
from training.fit import FitConfig, fit
from training.methods import METHODS
from training.methods.base import MethodSpec
from training.network.checkpoint import load_checkpoint
from training.network.decoders import DECODERS
from training.network.model import ModelConfig, PTSAModel
from training.network.plan import make_plan
from training.network.planned import Effective, Planned

# Read by nobody in published forms: a trunk behind the last fork of all, norms of TADFormer that no forward pass reads.
DEAD = re.compile(r"/3/blocks/0/(attn/proj|mlp/fc1|mlp/fc2)\.|/attn/proj\.norm")
TASKS = ("segmentation", "depth", "normals", "saliency")
BACKBONES = ("swin_test", "pvt_test")


def fits(backbone: str, method: str) -> bool:
    return backbone.startswith("swin") or not METHODS[method].windows


VARIANTS = [
    *((backbone, name, {}) for backbone in BACKBONES for name in METHODS if fits(backbone, name)),
    ("swin_test", "ptsa", {"merge": "lora", "norms": "per_group", "tables": "per_group", "patch": "frozen"}),
    ("swin_test", "mtlora", {"merge": "lora", "rank": [1, 2, 0, 3], "norms": "frozen"}),
    ("swin_test", "taps", {"delta": "low_rank"}),
    ("swin_test", "rcm", {"full": True, "normalised": False, "layers": "all"}),
    ("pvt_test", "ptsa", {"merge": "frozen", "norms": "per_group", "rank": [1, 2, 0, 3]}),
    ("swin_test", "palora", {"merge": "lora", "trunk": "train", "preference": dict.fromkeys(TASKS, 1) | {"depth": 3}}),
    ("swin_test", "ct_moa", {"gate": "dynamic"}),
]


# Options of whichever method has them: small adapters, and gates so far open that no test shuts them.
SMALL = {"rank": 2, "token_width": 16, "head_width": 4, "start": 1.0}


def small(method: str) -> dict:
    return {name: value for name, value in SMALL.items() if name in METHODS[method].options.__dataclass_fields__}


def new(backbone: str, method: str, options: dict, tree: TaskTree, decoder: str = "pyramid") -> PTSAModel:
    return PTSAModel(ModelConfig(backbone, tree, method, small(method) | options, decoder, width=8)).eval()


def shaken(model: PTSAModel) -> PTSAModel:
    """float64, with values that matter in everything that may be trained, and experts where there must be some."""
    model = model.double()
    if METHODS[model.config.method].experts:
        for task in TASKS:
            other = build_backbone(model.backbone.name).double()
            for slot in other.slots:
                model.method.adopt(
                    task, slot, {r: t + 0.1 * torch.randn_like(t) for r, t in other.tensors(slot).items()}
                )
    with torch.no_grad():
        for name in model.owners():
            model.get_parameter(name).add_(torch.randn_like(model.get_parameter(name)), alpha=0.1)
    return model


def planned(model: PTSAModel, images: Tensor, tasks: list[str]) -> dict[str, Tensor]:
    """The slow way: effective tensors, one node after another."""
    method, slots = model.method, model.backbone.slots
    plan = make_plan(slots, method.layout, method.version, tasks=tasks)
    run = Effective(plan, lambda slot, index: method.effective(slot, plan[slot.name][index].stream))
    flow = Planned(plan, tasks, method.layout.tap, run)
    model.backbone.walk(model.normalised(images), flow)
    return {task: model.decoders[task](flow.taps[task]) for task in tasks}


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize(("backbone", "method", "options"), VARIANTS)
@torch.no_grad()
def test_folded_it_is_the_same_for_each_task_alone(
    backbone: str, method: str, options: dict, decoder: str, tree: TaskTree
) -> None:
    model = shaken(new(backbone, method, options, tree, decoder))
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    stacked = model(images)
    for task in TASKS:
        difference = (planned(model, images, [task])[task] - stacked[task]).abs().max()
        assert difference < 1e-9 * stacked[task].abs().max(), task


@pytest.mark.parametrize(("backbone", "method", "options"), [v for v in VARIANTS if METHODS[v[1]].neutral])
@torch.no_grad()
def test_at_the_start_every_task_sees_the_backbone(backbone: str, method: str, options: dict, tree: TaskTree) -> None:
    model = new(backbone, method, options, tree)
    images = torch.rand(1, 3, 64, 64) * 255
    maps = model.backbone.maps(model.normalised(images))
    for task, raw in model(images).items():
        torch.testing.assert_close(raw, model.decoders[task](maps), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("backbone", "method", "options"), VARIANTS)
def test_gradients_reach_owners_alone_and_all_that_is_trained(
    backbone: str, method: str, options: dict, tree: TaskTree
) -> None:
    model = shaken(new(backbone, method, options, tree)).float()
    model.freeze()
    owners = model.owners()
    assert set(owners) == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    reached: dict[str, set[str]] = {name: set() for name in owners}
    images = torch.rand(1, 3, 64, 64) * 255
    for task in TASKS:
        model.zero_grad()
        model(images)[task].square().sum().backward()
        for name in owners:
            gradient = model.get_parameter(name).grad
            if gradient is not None and gradient.any():
                reached[name].add(task)
    dead = {name for name, tasks in reached.items() if not tasks}
    assert all(DEAD.search(name) for name in dead), dead
    assert model.method.layout.teeth or not dead
    assert {name: tasks for name, tasks in reached.items() if tasks} == {
        n: set(owners[n]) for n in reached if n not in dead
    }


# Which streams there are does not depend on the backbone.
@pytest.mark.parametrize("backbone", ["swin_test", pytest.param("pvt_test", marks=pytest.mark.slow)])
@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_changing_what_some_tasks_own_changes_no_other(backbone: str, method: str, tree: TaskTree) -> None:
    if not fits(backbone, method):
        pytest.skip(f"{method} needs windows of tokens, which {backbone} has not")
    model = shaken(new(backbone, method, {}, tree))
    images = torch.rand(1, 3, 64, 64) * 255
    before = model(images)
    for tasks in sorted({tuple(sorted(tasks)) for tasks in model.owners().values()}):
        changed = copy.deepcopy(model)
        for name, owners in model.owners().items():
            if tuple(sorted(owners)) == tasks:
                changed.get_parameter(name).add_(0.1 * torch.randn_like(changed.get_parameter(name)))
        after = changed(images)
        assert {task for task in TASKS if not torch.equal(before[task], after[task])} == set(tasks)


# The others train the same changes in other places.
RUN = ("single_task", "mtlora", "ptsa")


@pytest.mark.parametrize("method", [m if m in RUN else pytest.param(m, marks=pytest.mark.slow) for m in METHODS])
def test_it_trains_resumes_and_loads(method: str, fit_config: FitConfig, tmp_path: Path, kill_in_step) -> None:
    start = fit(replace(fit_config, steps=1, out=tmp_path / "start"))
    experts = dict.fromkeys(TASKS, start) if METHODS[method].experts else {}
    config = replace(
        fit_config, method=method, experts=experts, options=small(method), start=start, steps=4, out=tmp_path / "run"
    )
    whole = fit(replace(config, out=tmp_path / "whole"))
    kill_in_step(4, lambda: fit(config))
    images = torch.rand(1, 3, 64, 64) * 255
    begun = load_checkpoint(start)(images)
    for task, raw in load_checkpoint(fit(config))(images).items():
        torch.testing.assert_close(raw, load_checkpoint(whole)(images)[task], atol=2e-3, rtol=1e-2)
        assert not torch.equal(raw, begun[task])


def test_a_new_method_is_one_file_and_one_line(monkeypatch: pytest.MonkeyPatch, tree: TaskTree) -> None:
    """A method made up here, of changes that exist: adapters at the attention's projections alone, a set a task."""
    from training.methods.base import Method
    from training.methods.options import NoOptions
    from training.network.changes import LowRank
    from training.network.layout import Layout

    def build(backbone, tree, options, tap) -> Method:
        changes = {
            slot.name: LowRank(
                backbone.tensors(slot)["weight"], tree.groups(slot.stage), rank=1, scale=1.0, dropout=0.0
            )
            for slot in backbone.slots
            if slot.kind == "proj"
        }
        return Method(backbone, Layout(tree, tap=tap), changes)

    spec = MethodSpec(build, NoOptions, "independent", "low rank", "here", "projections", "wholly")
    monkeypatch.setitem(METHODS, "projections", spec)
    model = shaken(new("swin_test", "projections", {}, tree))
    images = torch.rand(1, 3, 64, 64) * 255
    for task in TASKS:
        torch.testing.assert_close(planned(model, images, [task])[task], model(images)[task])


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("ptsa", {"rank": [1, 2]}, "pvt_test has 4 stages: give one rank, or 4"),
        ("ptsa", {"dropout": 1.0}, "dropout is 1.0; allowed are 0 up to"),
        ("mtlora", {"norms": "per_group"}, "norms is 'per_group'; allowed are shared, frozen"),
        ("mtlora", {"task_rank": 0}, "task_rank is 0"),
        ("taps", {"start": 0.05}, "start is 0.05, threshold 0.1; gates begin open"),
        ("taps", {"penalty": -1.0}, "penalty is -1.0; allowed are 0"),
        ("taps", {"warmup": 1.0}, "warmup is 1.0; it is a part of the run"),
        ("rcm", {"rank": 0}, "rank is 0 everywhere; allowed are ranks"),
        ("rcm", {"layers": "first"}, "layers is 'first'; allowed are ends, all"),
        ("taps", {"delta": "sparse"}, "delta is 'sparse'; allowed are dense, low_rank"),
        ("ptsa", {"merge": "lora"}, "this backbone merges patches by a convolution; choose train or frozen"),
        ("mtlora", {"merge": "lora"}, "this backbone merges patches by a convolution; choose train or frozen"),
        ("polyhistor", {"share_scaling": True}, "polyhistor has no option 'share_scaling'"),
        ("bitfit", {"rank": 2}, "bitfit has no option 'rank'; it has norms"),
        ("palora", {"norms": "per_group"}, "norms is 'per_group'; allowed are shared, frozen"),
        ("pareto", {"preference": {"edges": 1}}, "preference names edges; the tasks are segmentation, depth"),
        ("pareto", {"preference": {"depth": -1}}, "preference is {'depth': -1}; allowed are numbers from 0 on"),
        ("palora", {"preference": {"depth": 0}}, "it must prefer some task, e.g. {segmentation: 1}"),
    ],
)
def test_options_that_do_not_fit_are_refused(method: str, options: dict, message: str, tree: TaskTree) -> None:
    with pytest.raises(ConfigError, match=message):
        PTSAModel(ModelConfig("pvt_test", tree, method, options))
