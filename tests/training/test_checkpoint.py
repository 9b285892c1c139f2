"""The file between training and export: nothing in it is lost, and what cannot be read says why."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from training.adapters import StreamLinear
from training.checkpoint import load_checkpoint, read_info, save_checkpoint
from training.errors import CheckpointError
from training.model import ModelConfig, PTSAModel

MATRIX = "backbone.swin.layers.1.downsample.reduction.weight"


@pytest.fixture
def path(model: PTSAModel, tmp_path: Path) -> Path:
    save_checkpoint(model, tmp_path / "model.safetensors", info={"steps": 3})
    return tmp_path / "model.safetensors"


def _rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the metadata of a checkpoint."""
    with safe_open(path, "pt") as file:
        metadata = json.loads(file.metadata()["ptsa"])
    change(metadata)
    save_file(load_file(path), path, metadata={"ptsa": json.dumps(metadata)})


def test_weights_too_large_for_fp16_stay_as_they_are(model: PTSAModel, tmp_path: Path) -> None:
    weight = model.get_parameter(MATRIX)
    with torch.no_grad():
        weight[0, 0], weight[1, 1] = 70_000.0, -1e30
    save_checkpoint(model, tmp_path / "model.safetensors", info={})
    assert torch.equal(load_checkpoint(tmp_path / "model.safetensors").get_parameter(MATRIX), weight)
    others = {name: tensor.dtype for name, tensor in load_file(tmp_path / "model.safetensors").items()}
    assert others.pop(MATRIX) == torch.float32
    assert torch.float16 in others.values()


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_weights_that_are_not_finite_are_never_written_nor_read(
    model: PTSAModel, path: Path, tmp_path: Path, value: float
) -> None:
    with torch.no_grad():
        model.get_parameter(MATRIX)[0, 0] = value
    with pytest.raises(CheckpointError, match="hold infinity or NaN; train again in a new --out folder"):
        save_checkpoint(model, tmp_path / "new.safetensors", info={})
    assert list(tmp_path.iterdir()) == [path]
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    tensors[MATRIX][0, 0] = value
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(CheckpointError, match=rf"{path}: .*{MATRIX}.* hold infinity or NaN"):
        load_checkpoint(path)


def test_another_version_is_refused(path: Path) -> None:
    _rewrite(path, lambda data: data.update(version=2))
    for read in (load_checkpoint, read_info):
        with pytest.raises(CheckpointError, match="of version 2, this program reads version 1; install the ptsa-serve"):
            read(path)


def test_checkpoints_of_before_the_scale_was_stored_are_read(path: Path) -> None:
    _rewrite(path, lambda data: data["model"].pop("scale"))
    assert load_checkpoint(path).config.scale == 4.0


def test_the_adapters_scale_comes_back(model: PTSAModel, tmp_path: Path) -> None:
    config = model.config
    other = PTSAModel(ModelConfig(config.backbone, config.tree, config.ranks, config.width, scale=2.0))
    save_checkpoint(other, tmp_path / "model.safetensors", info={})
    found = {m.scale for m in load_checkpoint(tmp_path / "model.safetensors").modules() if isinstance(m, StreamLinear)}
    assert found == {2.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.pop("model"), "does not say what model it holds"),
        (lambda data: data["model"].update(tree={"version": 7}), "does not say what model it holds .*version 7"),
        (lambda data: data["model"].update(backbone="resnet"), "describes a model that cannot be built .*'resnet'"),
        (lambda data: data["model"].update(width=16), r"\['decoders.depth.* do not fit the model that it describes"),
    ],
)
def test_a_checkpoint_that_contradicts_itself_is_refused(
    path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    _rewrite(path, change)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(path)


@pytest.mark.parametrize("data", [b"", b"abc", b"\x80\x02}q\x00."])
def test_other_files_are_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.pth").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"x\.pth is no ptsa checkpoint or weights, or damaged .* take the"):
        load_checkpoint(tmp_path / "x.pth")
