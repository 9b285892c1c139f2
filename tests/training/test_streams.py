"""The streams against a slow oracle: plain timm Swins with folded weights, one task at a time."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from training.adapters import StreamLinear
from training.model import ModelConfig, PTSAModel
from training.swin import set_size, stage_maps
from training.tree import TaskTree

TASKS = ("segmentation", "depth", "normals", "saliency")
SIZES = [(64, 96), (96, 64), (32, 32)]


def oracle(model: PTSAModel, task: str, images: Tensor) -> list[Tensor]:
    """Stage outputs of one task through a plain Swin."""
    swin = copy.deepcopy(model.backbone.swin)
    for stage, layer in enumerate(swin.layers):
        group = model.backbone.tree.group_of(stage, task)
        for module in list(layer.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, StreamLinear):
                    plain = nn.Linear(child.frozen.in_features, child.frozen.out_features)
                    plain.weight.data, plain.bias.data = child.folded(group), child.frozen.bias.data
                    setattr(module, name, plain)
    return stage_maps(swin, images)


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_streams_equal_one_plain_network_a_task(model: PTSAModel, size: tuple[int, int]) -> None:
    images = torch.randn(2, 3, *size)
    set_size(model.backbone.swin, size)
    taps = model.backbone(images, TASKS)
    for task in TASKS:
        for got, expected in zip(taps[task], oracle(model, task, images), strict=True):
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
def test_stages_run_once_for_each_group(model: PTSAModel, tree: TaskTree) -> None:
    rows: dict[int, int] = {}
    for stage, layer in enumerate(model.backbone.swin.layers):
        layer.blocks[0].register_forward_pre_hook(lambda _, args, s=stage: rows.__setitem__(s, args[0].shape[0]))
    model(torch.zeros(3, 3, 64, 64))
    assert rows == {stage: 3 * count for stage, count in enumerate(tree.counts)}


@torch.no_grad()
def test_a_groups_adapter_changes_its_tasks_alone(model: PTSAModel, tree: TaskTree) -> None:
    images = torch.rand(1, 3, 64, 64) * 255
    before = model(images)
    for stage, layer in enumerate(model.backbone.swin.layers):
        for index, group in enumerate(tree.groups(stage)):
            changed = copy.deepcopy(model)
            changed.backbone.swin.layers[stage].blocks[0].mlp.fc1.up[index] += 1.0
            after = changed(images)
            moved = {task for task in TASKS if not torch.allclose(before[task], after[task], atol=1e-5)}
            assert moved == set(group), f"stage {stage}, group {group} of {layer}"


def test_a_tasks_loss_leaves_other_groups_without_gradient(model: PTSAModel, tree: TaskTree) -> None:
    model(torch.rand(1, 3, 64, 64) * 255)["depth"].sum().backward()
    for stage, adapters in enumerate(model.backbone._adapters):
        mine = tree.group_of(stage, "depth")
        for adapter in adapters:
            norms = adapter.up.grad.flatten(1).norm(dim=1)
            assert [i for i, norm in enumerate(norms) if norm > 0] == [mine]


@torch.no_grad()
def test_independent_tree_splits_at_the_first_stage(randomise: Callable[[PTSAModel], PTSAModel]) -> None:
    config = ModelConfig("swin_test", TaskTree.independent(TASKS), (2, 2, 2, 2), width=8)
    model = randomise(PTSAModel(config))
    images = torch.rand(2, 3, 64, 64) * 255
    set_size(model.backbone.swin, (64, 64))
    taps = model.backbone(images, TASKS)
    for task in TASKS:
        torch.testing.assert_close(taps[task][-1], oracle(model, task, images)[-1], atol=1e-3, rtol=1e-4)


def test_adapting_trains_adapters_and_decoders_only(model: PTSAModel) -> None:
    model.freeze_backbone()
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    expected = {n for n, _ in model.named_parameters() if n.startswith("decoders.") or n.endswith((".up", ".down"))}
    assert trainable == expected
