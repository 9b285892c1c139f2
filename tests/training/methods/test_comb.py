"""Combs, and methods of a network a task: which layers a compiled graph has, and for whom."""

import pytest
import torch

from export.fold import fold
from ptsa_serve.task_tree import TaskTree
from training.methods import METHODS
from training.network.model import ModelConfig, PTSAModel
from training.network.slots import ADAPTED

COMBS = ("dora", "ditask", "sinewich")
NETWORKS = ("mtl_lora", "tora")


def trained(method: str, tree: TaskTree) -> PTSAModel:
    options = {"rank": 2} if "rank" in METHODS[method].options.__dataclass_fields__ else {}
    model = PTSAModel(ModelConfig("swin_test", tree, method, options, width=8)).eval()
    with torch.no_grad():
        for name in model.owners():
            model.get_parameter(name).add_(torch.randn_like(model.get_parameter(name)), alpha=0.1)
    return model


@pytest.mark.parametrize("method", [*COMBS, *NETWORKS])
def test_the_tree_is_the_predicted_one(method: str, tree: TaskTree) -> None:
    model = trained(method, tree)
    network = fold(model).network
    for slot in model.backbone.slots:
        if method in COMBS:
            copies = 5 if slot.last and slot.kind in ("proj", "fc1", "fc2") else 1
        else:
            copies = 4 if slot.kind in ADAPTED else 1
        assert len(network.keys[slot.name]) == copies, slot.name
        if copies > 1:
            assert len(network.plan[slot.name]) == copies, slot.name


@pytest.mark.parametrize("method", COMBS)
def test_before_the_fork_there_is_one_stream_and_a_task_alone_has_its_tooth(method: str, tree: TaskTree) -> None:
    plan = fold(trained(method, tree), tasks=["depth"]).network.plan
    assert {len(nodes) for nodes in plan.values()} == {1, 2}
    assert all(len(nodes) == 1 for name, nodes in plan.items() if name.endswith("qkv"))


@pytest.mark.parametrize("method", COMBS)
def test_what_learnt_nothing_is_one_network(method: str, tree: TaskTree) -> None:
    model = PTSAModel(ModelConfig("swin_test", tree, method, width=8)).eval()
    assert {len(nodes) for nodes in fold(model).network.plan.values()} == {1}
