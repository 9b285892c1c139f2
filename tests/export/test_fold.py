from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from export.fold import fold
from ptsa_serve.task_tree import TaskTree
from training.methods.base import Change
from training.network.heads import finish
from training.network.model import PTSAModel
from training.network.planned import Effective
from training.network.slots import Slot

SIZE = (64, 96)
# Sums in another order: seen are 4e-7 for all but normals, which divide by a length that may be small.
TOLERANCE = 5e-5

Images = Callable[[int, tuple[int, int]], np.ndarray]


def maps_of(model: PTSAModel, batch: np.ndarray) -> dict[str, torch.Tensor]:
    raw = model(torch.from_numpy(batch).permute(0, 3, 1, 2))
    return {name: finish(model.tasks[name], planes, batch.shape[1:3]) for name, planes in raw.items()}


@torch.no_grad()
@pytest.mark.parametrize("size", [SIZE, (96, 64), (224, 224)])
def test_folded_network_equals_the_trained_one(model: PTSAModel, images: Images, size: tuple[int, int]) -> None:
    batch = images(2, size)
    expected = maps_of(model, batch)
    found = fold(model).network(torch.from_numpy(batch))
    assert list(found) == list(expected)
    for name, values in found.items():
        assert values.dtype == expected[name].dtype
        torch.testing.assert_close(values, expected[name], atol=TOLERANCE, rtol=0)


def test_folded_weights_are_the_frozen_plus_the_scaled_product(model: PTSAModel) -> None:
    state = model.state_dict()
    slot = "layers/3/blocks/0/mlp/fc1"
    weights = dict(fold(model).network.named_parameters())
    for group in range(4):
        up, down = (state[f"method.changes.{slot}.{factor}.{group}"] for factor in ("up", "down"))
        expected = state["backbone.trunk.layers.3.blocks.0.mlp.fc1.weight"] + 4.0 * up @ down
        torch.testing.assert_close(weights[f"slots.{slot}.{group}.weight"], expected)


def test_nothing_of_the_adapters_or_batch_norms_is_left(model: PTSAModel) -> None:
    left = [m for m in fold(model).network.modules() if isinstance(m, Change | nn.BatchNorm2d)]
    assert left == []


@torch.no_grad()
def test_folding_twice_gives_the_same_and_leaves_the_model_as_it_was(model: PTSAModel, images: Images) -> None:
    batch = images(1, SIZE)
    before = maps_of(model, batch)
    first, second = (dict(fold(model).network.named_parameters()) for _ in range(2))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    after = maps_of(model, batch)
    assert all(torch.equal(before[name], after[name]) for name in before)


@torch.no_grad()
@pytest.mark.parametrize(
    ("stage", "group", "changed"),
    [
        (1, 0, {"segmentation", "depth", "normals", "saliency"}),
        (2, 0, {"segmentation", "saliency"}),
        (2, 1, {"depth", "normals"}),
        (3, 2, {"normals"}),
    ],
)
def test_a_groups_factors_change_its_own_tasks_alone(
    model: PTSAModel, images: Images, stage: int, group: int, changed: set[str]
) -> None:
    batch = torch.from_numpy(images(1, SIZE))
    before = fold(model).network(batch)
    model.get_parameter(f"method.changes.layers/{stage}/blocks/0/attn/proj.up.{group}").add_(3.0)
    after = fold(model).network(batch)
    assert {name for name in before if not torch.equal(before[name], after[name])} == changed


@torch.no_grad()
def test_each_branch_runs_its_slots_once(model: PTSAModel, images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    original = Effective.__call__

    def counted(self: Effective, slot: Slot, *arguments) -> torch.Tensor:
        calls.append(slot.name)
        return original(self, slot, *arguments)

    monkeypatch.setattr(Effective, "__call__", counted)
    fold(model).network(torch.from_numpy(images(1, SIZE)))
    # Depths 2-1-1-1 in 1-1-2-4 branches; a merging belongs to the branches of the stage that it ends.
    assert [sum(name.startswith(f"layers.{s}.") and name.endswith("qkv") for name in calls) for s in range(4)] == [
        2,
        1,
        2,
        4,
    ]
    assert [calls.count(f"layers.{stage}.downsample.reduction") for stage in (1, 2, 3)] == [1, 1, 2]


def test_what_branches_have_in_common_is_one_tensor(model: PTSAModel) -> None:
    slots = fold(model).network.slots
    assert len(slots["layers/3/blocks/0/norm1"]) == len(slots["layers/3/blocks/0/attn"]) == 1
    copies = slots["layers/3/blocks/0/mlp/fc1"]
    assert len(copies) == 4
    assert len({id(copy["bias"]) for copy in copies}) == 1


def nodes(model: PTSAModel) -> list[int]:
    """Of the last slot of each stage's blocks."""
    plan = fold(model).network.plan
    return [len(plan[f"layers.{stage}.blocks.0.mlp.fc2"]) for stage in range(4)]


def test_groups_without_adapters_are_not_copied(random_model: Callable[..., PTSAModel], model: PTSAModel) -> None:
    bare = random_model(model.config.tree, ranks=(2, 2, 0, 3))
    assert nodes(bare) == [1, 1, 1, 4]
    untrained = random_model(model.config.tree)
    with torch.no_grad():
        for name, parameter in untrained.named_parameters():
            if ".up." in name:
                parameter.zero_()
    assert nodes(untrained) == [1, 1, 1, 1]


@torch.no_grad()
def test_a_subset_of_tasks_gives_the_same_maps(model: PTSAModel, images: Images) -> None:
    batch = torch.from_numpy(images(1, SIZE))
    all_tasks = fold(model).network(batch)
    some = fold(model, tasks=["depth"]).network(batch)
    assert list(some) == ["depth"]
    torch.testing.assert_close(some["depth"], all_tasks["depth"])


@torch.no_grad()
def test_independent_tasks_fold_too(random_model: Callable[..., PTSAModel], images: Images) -> None:
    model = random_model(TaskTree.independent(("depth", "saliency")))
    batch = images(2, SIZE)
    expected = maps_of(model, batch)
    for name, values in fold(model).network(torch.from_numpy(batch)).items():
        torch.testing.assert_close(values, expected[name], atol=TOLERANCE, rtol=0)


def test_training_mode_is_refused(model: PTSAModel) -> None:
    with pytest.raises(ValueError, match=r"model\.eval"):
        fold(model.train())
