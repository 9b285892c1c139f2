"""Stacked streams against a slow oracle: timm's own network, once a task, with folded weights."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor

from ptsa_serve.task_tree import TaskTree
from training.network.changes import LowRank
from training.network.model import ModelConfig, PTSAModel
from training.network.slots import Weights

TASKS = ("segmentation", "depth", "normals", "saliency")
SIZES = [(64, 96), (96, 64), (32, 32)]
BACKBONES = ("swin_test", "pvt_test")

Randomise = Callable[[PTSAModel], PTSAModel]


@pytest.fixture(params=BACKBONES)
def backbone(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def model(backbone: str, tree: TaskTree, randomise: Randomise) -> PTSAModel:
    return randomise(PTSAModel(ModelConfig(backbone, tree, options={"rank": [2, 2, 3, 3]}, width=8)))


def taps(model: PTSAModel, images: Tensor) -> dict[str, list[Tensor]]:
    """What each task's decoder is given, for images of 0...255."""
    found: dict[str, list[Tensor]] = {}
    hooks = [
        decoder.register_forward_pre_hook(lambda _, args, task=task: found.__setitem__(task, args[0]))
        for task, decoder in model.decoders.items()
    ]
    model(images)
    for hook in hooks:
        hook.remove()
    return found


def timm_maps(trunk: Any, images: Tensor) -> list[Tensor]:
    """Stage outputs (N, h, w, C) through timm's own code."""
    if isinstance(trunk, SwinTransformer):
        trunk.set_input_size(img_size=tuple(images.shape[-2:]), window_size=7, always_partition=True)
    maps = trunk.forward_intermediates(images, intermediates_only=True)
    return [planes.permute(0, 2, 3, 1) for planes in maps]


def oracle(model: PTSAModel, task: str, images: Tensor) -> list[Tensor]:
    """Stage outputs of one task through timm's own network, with that task's weights in it."""
    model = copy.deepcopy(model)
    trunk = model.backbone.trunk
    for slot, nodes in model.method.plan([task]).items():
        found = model.method.effective(model.backbone._at[slot], nodes[0].stream)
        assert isinstance(found, Weights)
        for role, name in model.backbone._at[slot].tensors.items():
            trunk.get_parameter(name).data.copy_(found.tensors[role])
    return timm_maps(trunk, model.normalised(images))


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_streams_equal_one_plain_network_a_task(model: PTSAModel, size: tuple[int, int]) -> None:
    images = torch.rand(2, 3, *size) * 255
    found = taps(model, images)
    for task in TASKS:
        for got, expected in zip(found[task], oracle(model, task, images), strict=True):
            torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_fewer_tasks_give_the_same_maps(model: PTSAModel) -> None:
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    whole = model(images)
    for tasks in (["normals"], ["segmentation", "normals"], ["depth", "saliency"]):
        part = model(images, tasks)
        assert list(part) == tasks
        for task in tasks:
            torch.testing.assert_close(part[task], whole[task], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_slots_run_once_for_each_group(model: PTSAModel, tree: TaskTree, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: dict[int, set[int]] = {}
    original = LowRank.forward

    def counted(change: LowRank, slot, base, x, streams) -> Tensor:
        rows.setdefault(slot.stage, set()).add(len(streams))
        return original(change, slot, base, x, streams)

    monkeypatch.setattr(LowRank, "forward", counted)
    model(torch.zeros(3, 3, 64, 64))
    assert rows == {stage: {count} for stage, count in enumerate(tree.counts)}


@torch.no_grad()
def test_a_groups_adapter_changes_its_tasks_alone(model: PTSAModel, tree: TaskTree) -> None:
    images = torch.rand(1, 3, 64, 64) * 255
    before = model(images)
    for stage in range(4):
        for index, group in enumerate(tree.groups(stage)):
            changed = copy.deepcopy(model)
            slot = next(slot for slot in model.backbone.slots if (slot.stage, slot.kind) == (stage, "fc1"))
            changed.get_parameter(f"method.changes.{slot.name.replace('.', '/')}.up.{index}").add_(1.0)
            after = changed(images)
            moved = {task for task in TASKS if not torch.allclose(before[task], after[task], atol=1e-5)}
            assert moved == set(group), f"stage {stage}, group {group}"


@torch.no_grad()
def test_independent_tree_splits_at_the_first_stage(backbone: str, randomise: Randomise) -> None:
    config = ModelConfig(backbone, TaskTree.independent(TASKS), options={"rank": 2}, width=8)
    model = randomise(PTSAModel(config))
    images = torch.rand(2, 3, 64, 64) * 255
    found = taps(model, images)
    for task in TASKS:
        torch.testing.assert_close(found[task][-1], oracle(model, task, images)[-1], atol=1e-3, rtol=1e-4)


def test_stochastic_depth_draws_once_a_photo_for_all_streams(backbone: str, tree: TaskTree) -> None:
    """With nothing learnt, groups differ by nothing but what is drawn: so they must not differ."""
    config = ModelConfig(backbone, tree, options={"rank": 2, "dropout": 0.0}, width=8)
    model = PTSAModel(config, drop_path=0.5).train()
    images = torch.rand(8, 3, 32, 32) * 255
    found = taps(model, images)
    bare = taps(model.eval(), images)
    assert not torch.equal(found["depth"][-1], bare["depth"][-1])
    for task in TASKS:
        torch.testing.assert_close(found[task][-1], found["depth"][-1], atol=1e-6, rtol=1e-5)


def test_sides_that_are_no_multiples_of_32_are_refused(model: PTSAModel) -> None:
    with pytest.raises(ValueError, match="input size 64 x 90: both sides must be multiples of 32"):
        model(torch.zeros(1, 3, 64, 90))
