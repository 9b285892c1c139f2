"""What a new model takes over from an earlier one, and what it refuses to."""

from pathlib import Path

import pytest
import torch

from training.checkpoint import save_checkpoint
from training.errors import CheckpointError
from training.model import ModelConfig, PTSAModel
from training.start import take_over
from training.tree import TaskTree

TASKS = ("segmentation", "depth")
SHARED = TaskTree.shared(TASKS)
SPLIT = TaskTree.parse("segmentation,depth / segmentation,depth / segmentation,depth / segmentation | depth")
EARLIER = TaskTree.parse("segmentation,depth / segmentation,depth / segmentation | depth / segmentation | depth")


def new(tree: TaskTree = SPLIT, ranks: tuple[int, ...] = (2, 2, 2, 2), width: int = 8) -> PTSAModel:
    return PTSAModel(ModelConfig("swin_test", tree, ranks, width))


def stored(model: PTSAModel, path: Path) -> Path:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter).half())
    save_checkpoint(model, path / "start.safetensors", info={})
    return path / "start.safetensors"


def test_a_model_without_adapters_gives_everything_but_adapters(tmp_path: Path) -> None:
    source, model = new(SHARED, (0, 0, 0, 0)), new()
    take_over(model, stored(source, tmp_path))
    for name, tensor in source.state_dict().items():
        owner, _, leaf = name.rpartition(".")
        own = model.state_dict()
        assert torch.equal(own.get(f"{owner}.frozen.{leaf}", own.get(name, torch.empty(0))), tensor), name
    assert not any(p.any() for name, p in model.named_parameters() if name.endswith(".up"))


def test_an_adapted_model_of_the_same_tree_gives_its_adapters_too(tmp_path: Path) -> None:
    source, model = new(), new()
    take_over(model, stored(source, tmp_path))
    for name, tensor in source.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_decoders_that_one_side_lacks_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = stored(new(SHARED, (0, 0, 0, 0)), tmp_path)
    take_over(new(TaskTree.shared(("depth", "saliency"))), path)
    said = capsys.readouterr().err
    assert "has no decoder of saliency: started from random weights" in said
    assert "its decoders of segmentation are left out" in said


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: new(EARLIER), "tree is segmentation,depth / .*, here segmentation,depth / "),
        (lambda: new(SPLIT, (2, 2, 2, 3)), r"ranks is \[2, 2, 2, 2\], here \[2, 2, 2, 3\]"),
        (lambda: new(SPLIT, width=16), "width is 8, here 16"),
        (lambda: new(SHARED, (0, 0, 0, 0)), "it has adapters, which --train all has no place for"),
    ],
)
def test_another_model_is_refused_and_nothing_is_taken_over(tmp_path: Path, model, message: str) -> None:
    path, target = stored(new(), tmp_path), model()
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    with pytest.raises(CheckpointError, match=rf"{path} is of another model: {message}"):
        take_over(target, path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in target.state_dict().items())
