"""A model for each task within eps of their centre: products of adapters are drawn together, and a tree is left."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from export.fold import fold
from ptsa_serve.task_tree import TaskTree
from training.errors import ConfigError
from training.fit import FitConfig, fit
from training.network.changes import Copies, LowRank
from training.network.checkpoint import load_checkpoint, read_info
from training.network.mixing import begin_together, inner_products, mix
from training.network.model import ModelConfig, PTSAModel
from training.rules.cross_learning import CrossLearning, drawn, proposed
from training.rules.weighted_sum import WeightedSum
from training.similarity.search import read_tree

TASKS = ("segmentation", "depth", "normals", "saliency")


@pytest.mark.parametrize("eps", [0.0, 0.25, 0.75, 1.0, 2.0])
def test_two_tasks_that_pull_apart_end_at_eps_from_their_centre(eps: float) -> None:
    """L_t = (w - a_t)² / 2 with a = 1 and -1: w = min(1, eps) and -min(1, eps)."""
    points, targets = torch.zeros(2, 1, dtype=torch.float64), torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    for _ in range(200):
        points = points - 0.1 * (points - targets)
        points = drawn(points @ points.T, eps) @ points
    torch.testing.assert_close(points, min(1.0, eps) * targets)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), tasks=st.integers(2, 5), eps=st.floats(0.01, 3))
def test_all_are_within_eps_of_what_their_mean_becomes(seed: int, tasks: int, eps: float) -> None:
    points = torch.randn(tasks, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    moved = drawn(points @ points.T, eps) @ points
    assert (moved - moved.mean(0)).norm(dim=1).max() <= eps * (1 + 1e-5)
    within = (points - points.mean(0)).norm(dim=1).max() <= eps
    assert torch.equal(moved, points) == bool(within)


def _changes() -> dict[str, tuple[Any, dict[str, Tensor], Any]]:
    """Changes of three tasks with values that matter, what they start from, and the weight of a group."""
    base = {"weight": torch.randn(7, 5, dtype=torch.float64)}
    groups = [("a",), ("b",), ("c",)]
    low = LowRank(base["weight"], groups, rank=3, scale=2.0, dropout=0.0).double()
    copies = Copies(base, groups).double()
    for parameter in (*low.parameters(), *copies.parameters()):
        torch.nn.init.normal_(parameter)
    return {
        "low rank": (low, base, lambda g: base["weight"] + 2.0 * low.up[g] @ low.down[g]),
        "copies": (copies, base, lambda g: copies.copies[g]["weight"]),  # pyright: ignore
    }


@pytest.mark.parametrize("kind", ["low rank", "copies"])
@torch.no_grad()
def test_distances_and_mixtures_are_those_of_whole_weights(kind: str) -> None:
    change, base, weight = _changes()[kind]
    before = torch.stack([weight(g).flatten() for g in range(3)])
    deltas = before - base["weight"].flatten()
    torch.testing.assert_close(inner_products(change, base), deltas @ deltas.T)
    # The last task is left alone; the first two become one.
    parts = torch.tensor([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2], [0.0, 0.0, 1.0]], dtype=torch.float64)
    own = copy.deepcopy(change)
    mix(change, parts)
    wanted = (parts @ before)[0].view(7, 5)
    if kind == "low rank":  # the best of its rank
        u, values, v = torch.linalg.svd(wanted - base["weight"])
        wanted = base["weight"] + u[:, :3] * values[:3] @ v[:3]
    torch.testing.assert_close(weight(0), wanted)
    assert torch.equal(weight(0), weight(1))
    for name, parameter in own.named_parameters():
        if name.split(".")[1] == "2":
            assert torch.equal(parameter, change.get_parameter(name))


@torch.no_grad()
def test_mixing_what_has_learnt_nothing_leaves_it_able_to_learn() -> None:
    base = torch.randn(7, 5)
    change = LowRank(base, [("a",), ("b",)], rank=3, scale=1.0, dropout=0.0)
    mix(change, torch.full((2, 2), 0.5))
    assert not change.up[0].any()
    torch.testing.assert_close(change.down[0] @ change.down[0].T, torch.eye(3) / 3)  # as long as at the start


def _losses(model: Any) -> dict[str, Tensor]:
    images = torch.linspace(0, 255, 3 * 32 * 32).view(1, 3, 32, 32)
    return {task: (raw - index).square().mean() for index, (task, raw) in enumerate(model(images).items())}


def _trained(method: str, rule: Any, steps: Any, lr: float, start: dict[str, Tensor]) -> PTSAModel:
    model = PTSAModel(ModelConfig("swin_test", TaskTree.shared(TASKS), method, width=8))
    model.load_state_dict({name: t for name, t in start.items() if not name.startswith("method.")}, strict=False)
    model.method.start()
    model.freeze()
    model.decoders.requires_grad_(False)  # their rates are not those of copies
    rule.bind(model, model.owners())
    steps(rule, model, _losses, lr=lr, optimizer=torch.optim.SGD).take(2)
    return model.eval()


def test_tasks_that_want_the_same_stay_alike() -> None:
    """One step of gradients that are equal: with random factors of their own tasks would lie at 1."""
    groups, weight = [("a",), ("b",)], torch.randn(30, 20)
    change = LowRank(weight, groups, rank=2, scale=1.0, dropout=0.0)
    begin_together(change)
    towards = torch.randn(30, 20)
    for up, down in zip(change.up, change.down, strict=True):
        up.data -= 0.1 * towards @ down.T
    inner = inner_products(change, {"weight": weight})
    torch.testing.assert_close(inner[0, 1], inner[0, 0])


def test_what_has_learnt_does_not_begin_again() -> None:
    change = LowRank(torch.randn(7, 5), [("a",), ("b",)], rank=2, scale=1.0, dropout=0.0)
    torch.nn.init.normal_(change.up[1])
    before = [down.clone() for down in change.down]
    begin_together(change)
    torch.testing.assert_close(list(change.down), before)


def test_without_room_it_is_joint_training_and_with_no_bound_each_by_itself(steps: Any) -> None:
    start = PTSAModel(ModelConfig("swin_test", TaskTree.shared(TASKS), "multi_task", width=8)).state_dict()
    together = _trained("single_task", CrossLearning(eps=0, every=1), steps, 0.04, start)
    joint = _trained("multi_task", WeightedSum(), steps, 0.01, start)
    name = "layers.2.blocks.1.mlp.fc1.weight"
    slot = next(slot for slot in joint.backbone.slots if name in slot.tensors.values())
    copies: Any = together.method.change(slot)
    assert not torch.equal(joint.backbone.trunk.get_parameter(name), start[f"backbone.trunk.{name}"])
    for group in copies.copies:
        # The mean of the tasks' steps is one step along the mean of their gradients.
        torch.testing.assert_close(group["weight"], joint.backbone.trunk.get_parameter(name), atol=2e-6, rtol=1e-4)
    # The tree gives way: one node a slot.
    assert {len(nodes) for nodes in fold(together).network.plan.values()} == {1}
    apart, alone = (
        _trained("single_task", rule, steps, 0.04, start) for rule in (CrossLearning(None, every=1), WeightedSum())
    )
    for name, parameter in apart.named_parameters():
        assert torch.equal(parameter, alone.get_parameter(name)), name


def test_like_tasks_are_proposed_to_share() -> None:
    near = torch.tensor([[0, 0.1, 0.9, 1], [0.1, 0, 1, 0.9], [0.9, 1, 0, 0.2], [1, 0.9, 0.2, 0]])
    far = torch.ones(4, 4) - torch.eye(4)
    tree = proposed(TaskTree.independent(TASKS), TASKS, {0: 0 * far, 1: near, 2: 0 * far, 3: far}, 0.5)
    # What a stage has parted the next one does not join again, however alike.
    assert str(tree) == (
        "segmentation,depth,normals,saliency / segmentation,depth | normals,saliency / "
        "segmentation,depth | normals,saliency / segmentation | depth | normals | saliency"
    )


def test_a_run_leaves_a_tree_that_fit_reads_and_a_graph_whose_shared_stages_run_once(
    fit_config: FitConfig, tmp_path: Path
) -> None:
    start = fit(replace(fit_config, steps=1, out=tmp_path / "start"))
    eps = [0, 0, None, None]
    config = replace(
        fit_config, method="lora_per_task", rank=2, options={"merge": "frozen"}, start=start, steps=2,
        rule="cross_learning", rule_options={"eps": eps}, rate=0.1, warmup=0, out=tmp_path / "cross",
    )  # fmt: skip
    result = fit(config)
    tree = read_tree(config.out / "tree.json")
    assert read_info(result)["rule_report"]["tree"] == str(tree)
    assert tree.counts[:2] == (1, 1)
    assert json.loads((config.out / "tree.json").read_text())["version"] == 1
    plan = fold(load_checkpoint(result)).network.plan
    counts = {slot.stage: len(plan[slot.name]) for slot in load_checkpoint(result).backbone.slots if slot.kind == "fc2"}
    assert counts == {0: 1, 1: 1, 2: 4, 3: 4}
    again = replace(config, method="ptsa", tree=str(config.out / "tree.json"), steps=1, out=tmp_path / "ptsa")
    assert load_checkpoint(fit(replace(again, rule="weighted_sum", rule_options={}))).config.tree == tree


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps": -1}, "eps is -1; allowed are 0 and more, null"),
        ({"every": 0}, "every is 0, likeness 0.5; allowed are 1 step"),
        ({"eps": "near"}, "hold a value of a wrong type"),
    ],
)
def test_wrong_options_are_refused(fit_config: FitConfig, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(fit_config, rule="cross_learning", rule_options=options)


@pytest.mark.parametrize(
    ("method", "eps", "message"),
    [
        ("ptsa", 1.0, "has each task adapters or copies; take lora_per_task, single_task, or ptsa with a tree"),
        ("lora_per_task", [1.0], r"eps is \[1.0\]; give one number, or 4"),
    ],
)
def test_a_structure_without_tensors_of_each_task_is_refused(method: str, eps: Any, message: str) -> None:
    model = PTSAModel(ModelConfig("swin_test", TaskTree.shared(TASKS), method, {"rank": 2}, width=8))
    with pytest.raises(ConfigError, match=message):
        CrossLearning(eps).bind(model, model.owners())
