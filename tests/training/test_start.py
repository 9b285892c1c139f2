"""What a new model takes over from an earlier one, and what it refuses to."""

from pathlib import Path

import pytest
import torch

from ptsa_serve.task_tree import TaskTree
from training.errors import CheckpointError
from training.network.checkpoint import save_checkpoint
from training.network.model import ModelConfig, PTSAModel
from training.network.start import take_over

TASKS = ("segmentation", "depth")
SHARED = TaskTree.shared(TASKS)
SPLIT = TaskTree.parse("segmentation,depth / segmentation,depth / segmentation,depth / segmentation | depth")
EARLIER = TaskTree.parse("segmentation,depth / segmentation,depth / segmentation | depth / segmentation | depth")


def new(tree: TaskTree = SPLIT, rank: int = 2, width: int = 8, norms: str = "shared") -> PTSAModel:
    return PTSAModel(ModelConfig("swin_test", tree, options={"rank": rank, "norms": norms}, width=width))


def whole(tree: TaskTree = SHARED, method: str = "multi_task") -> PTSAModel:
    return PTSAModel(ModelConfig("swin_test", tree, method, width=8))


def stored(model: PTSAModel, path: Path) -> Path:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter).half())
    save_checkpoint(model, path / "start.safetensors", info={})
    return path / "start.safetensors"


def test_a_model_without_adapters_gives_everything_but_adapters(tmp_path: Path) -> None:
    source, model = whole(), new()
    take_over(model, stored(source, tmp_path))
    for name, tensor in source.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    assert not any(p.any() for name, p in model.named_parameters() if ".up." in name)


def test_copies_start_as_the_backbone_that_was_taken_over(tmp_path: Path) -> None:
    path = stored(whole(), tmp_path)
    for model in (whole(SPLIT, "single_task"), new(norms="per_group")):
        take_over(model, path)
        copies = {name: p for name, p in model.method.named_parameters() if ".copies." in name}
        for name, copy in copies.items():
            _, slot, _, _, role = name.split(".")
            own = next(s for s in model.backbone.slots if s.name == slot.replace("/", "."))
            assert torch.equal(copy, model.backbone.tensors(own)[role]), name
        assert copies


def test_an_adapted_model_of_the_same_tree_gives_its_adapters_too(tmp_path: Path) -> None:
    source, model = new(), new()
    take_over(model, stored(source, tmp_path))
    for name, tensor in source.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_decoders_that_one_side_lacks_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = stored(whole(), tmp_path)
    take_over(whole(TaskTree.shared(("depth", "saliency"))), path)
    said = capsys.readouterr().err
    assert "has no decoder of saliency: started from random weights" in said
    assert "its decoders of segmentation are left out" in said


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: new(EARLIER), "tree is segmentation,depth / .*, here segmentation,depth / "),
        (lambda: new(rank=3), "options is .*'rank': 2, .*, here .*'rank': 3, "),
        (lambda: new(SPLIT, width=16), "width is 8, here 16"),
        (whole, "it was adapted by ptsa, which --method multi_task has no place for"),
    ],
)
def test_another_model_is_refused_and_nothing_is_taken_over(tmp_path: Path, model, message: str) -> None:
    path, target = stored(new(), tmp_path), model()
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    with pytest.raises(CheckpointError, match=rf"{path} is of another model: {message}"):
        take_over(target, path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in target.state_dict().items())
