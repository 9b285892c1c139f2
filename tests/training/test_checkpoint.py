"""The file between training and export: nothing in it is lost, and what cannot be read says why."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ptsa_serve.task_tree import TaskTree
from ptsa_serve.tasks import TASKS, Task
from training.backbones.swin import SWINS
from training.errors import CheckpointError, ConfigError
from training.network.changes import LowRank
from training.network.checkpoint import load_checkpoint, read_info, save_checkpoint
from training.network.checkpoint_v1 import upgraded_config
from training.network.model import ModelConfig, PTSAModel

MATRIX = "backbone.trunk.layers.1.downsample.reduction.weight"

FILES = Path(__file__).with_name("files")


@pytest.fixture
def path(model: PTSAModel, tmp_path: Path) -> Path:
    save_checkpoint(model, tmp_path / "model.safetensors", info={"steps": 3})
    return tmp_path / "model.safetensors"


def read_metadata(path: Path) -> dict[str, Any]:
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["ptsa"])


def _rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the metadata of a checkpoint."""
    metadata = read_metadata(path)
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
    _rewrite(path, lambda data: data.update(version=3))
    for read in (load_checkpoint, read_info):
        with pytest.raises(CheckpointError, match="of version 3, this program reads 1 and 2; install the ptsa-serve"):
            read(path)


@torch.no_grad()
def test_a_checkpoint_of_version_1_is_the_model_that_it_was(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Files that the code of version 1 wrote: the model, and what it answered to an image."""
    monkeypatch.setitem(SWINS, "swin_v1", {"embed_dim": 4, "depths": (1, 1, 2, 1), "num_heads": (1, 1, 2, 2)})
    model = load_checkpoint(FILES / "version1.safetensors")
    assert (model.config.method, model.config.options["rank"]) == ("ptsa", [2, 2, 1, 1])
    arrays = np.load(FILES / "version1.npz")
    for task, raw in model(torch.from_numpy(arrays["image"])).items():
        np.testing.assert_allclose(raw.numpy(), arrays[task], atol=1e-5)
    # Of before the scale was stored, and of a model tuned as a whole.
    path = tmp_path / "older.safetensors"
    shutil.copy(FILES / "version1.safetensors", path)
    _rewrite(path, lambda data: data["model"].pop("scale"))
    assert load_checkpoint(path).config.options["scale"] == 4.0
    tuned = {**read_metadata(path)["model"], "ranks": [0, 0, 0, 0]}
    assert ModelConfig.from_json(upgraded_config(tuned)).method == "multi_task"


def test_the_adapters_scale_comes_back(model: PTSAModel, tmp_path: Path) -> None:
    config = model.config
    other = PTSAModel(replace(config, options={**config.options, "scale": 2.0}))
    save_checkpoint(other, tmp_path / "model.safetensors", info={})
    found = load_checkpoint(tmp_path / "model.safetensors").modules()
    assert {module.scale for module in found if isinstance(module, LowRank)} == {2.0}


def test_tasks_come_back_as_they_were_given(tmp_path: Path, tree: TaskTree) -> None:
    """Two data sets may mean different things by one name; files that do not say have the package's own."""
    two = Task("segmentation", "classes", 2, classes=("wall", "rest"), colors=((0, 0, 0), (255, 255, 255)))
    tasks = (TASKS["saliency"], two, TASKS["normals"], TASKS["depth"])
    path = tmp_path / "model.safetensors"
    save_checkpoint(PTSAModel(ModelConfig("swin_test", tree, width=8, tasks=tasks)), path, info={})
    model = load_checkpoint(path)
    assert list(model.tasks) == list(tree.tasks)
    assert model.tasks == {task.name: task for task in tasks}
    assert model(torch.zeros(1, 3, 32, 32))["segmentation"].shape[1] == 2
    save_checkpoint(PTSAModel(ModelConfig("swin_test", tree, width=8)), path, info={})
    _rewrite(path, lambda data: data["model"].pop("tasks"))
    assert load_checkpoint(path).tasks == {name: TASKS[name] for name in tree.tasks}


def test_a_task_without_a_record_is_refused() -> None:
    with pytest.raises(ConfigError, match="the tree names parts, the tasks are depth; name those alone"):
        ModelConfig("swin_test", TaskTree.shared(("depth", "parts")), tasks=(TASKS["depth"],))


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
