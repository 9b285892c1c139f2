"""What ships may come from an earlier form of training and export: today's must say the same of its weights.

The artifact is made a model again: its frozen layers and factors as they are, position tables from the biases that were
looked up in them, and batch norms, which were folded away, as norms that only add what they left behind.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor, nn

from export import counts
from export.fold import fold
from export.manifest import backbone_digest
from export.parity import TOLERANCES
from ptsa_serve.artifact import Artifact, default_artifact
from ptsa_serve.difference import difference
from ptsa_serve.engines import EngineOptions, load_engine
from ptsa_serve.images import ImageLimits, decode
from ptsa_serve.task_tree import TaskTree
from training.network.heads import finish
from training.network.model import ModelConfig, PTSAModel

FROZEN = dict.fromkeys(("merge", "norms", "tables", "patch"), "frozen")


@pytest.fixture(scope="module")
def shipped() -> tuple[Artifact, PTSAModel]:
    """The artifact in the package, and the model that it was compiled from."""
    artifact = Artifact.open(default_artifact())
    manifest = artifact.manifest
    tensors, recipes = _read(artifact.folder / "weights.safetensors")
    scales = {recipe["scale"] for recipe in recipes.values() if recipe.get("up")}
    ranks = [len(tensors[f"layers.{stage}.blocks.0.attn.qkv.down.0"]) for stage in range(4)]
    options = {"rank": ranks, "scale": scales.pop(), **FROZEN}
    config = ModelConfig(manifest.backbone.name, TaskTree.from_json(manifest.tree.model_dump()), "ptsa", options)
    model = PTSAModel(config)
    with torch.no_grad():
        _load_backbone(model, tensors)
        _load_adapters(model, tensors)
        for name, parameter in model.decoders.named_parameters():
            if (found := tensors.get(f"decoders.{name}")) is not None:
                parameter.copy_(found)
        _neutralise_norms(model, tensors)
    return artifact, model.eval()


def test_costs_and_backbone_are_those_of_the_manifest(shipped: tuple[Artifact, PTSAModel]) -> None:
    artifact, model = shipped
    network = fold(model).network
    said = artifact.manifest.counts
    assert (counts.frozen(model), counts.trainable(model)) == (said.frozen, said.trainable)
    assert counts.deployed(network) == said.deployed
    for size in artifact.manifest.input.sizes:
        assert counts.multiply_adds(network, size) == said.multiply_adds["{}x{}".format(*size)]
    assert backbone_digest(model) == artifact.manifest.backbone.sha256


@torch.no_grad()
def test_every_form_answers_as_the_shipped_graph_does(shipped: tuple[Artifact, PTSAModel]) -> None:
    artifact, model = shipped
    size = artifact.manifest.input.sizes[0]
    photo = Image.fromarray(decode(artifact.sample()[0], ImageLimits()).pixels).resize((size[1], size[0]))
    batch = torch.from_numpy(np.array(photo))[None]
    expected = load_engine("onnxruntime", artifact, EngineOptions(threads=1)).run(batch.numpy())
    raw = model(batch.permute(0, 3, 1, 2))
    trained = {name: finish(model.tasks[name], planes, size) for name, planes in raw.items()}
    for form in (trained, fold(model).network(batch)):
        for name, task in model.tasks.items():
            assert difference(task.kind, form[name].numpy(), expected[name]).worst <= TOLERANCES[task.kind], name


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with safe_open(path, "pt") as file:
        recipes = json.loads(file.metadata()["initializers"])
        return {name: file.get_tensor(name).float() for name in file.keys()}, recipes  # noqa: SIM118


def _load_backbone(model: PTSAModel, tensors: dict[str, Tensor]) -> None:
    for name, parameter in model.backbone.trunk.named_parameters():
        module, _, leaf = name.rpartition(".")
        slot = f"slots.{module.replace('.', '/')}.0."
        if leaf == "relative_position_bias_table":
            parameter.copy_(_table(tensors[f"{slot}position_bias"][0], parameter))
        else:
            parameter.copy_(tensors[name] if name in tensors else tensors[slot + leaf])


def _table(bias: Tensor, like: Tensor) -> Tensor:
    """The table whose entries were looked up to make `bias` (heads, T, T)."""
    window = int(bias.shape[-1] ** 0.5)
    place = torch.arange(window)
    rows, columns = (c.flatten() for c in torch.meshgrid(place, place, indexing="ij"))
    index = (rows[:, None] - rows + window - 1) * (2 * window - 1) + columns[:, None] - columns + window - 1
    table = torch.empty_like(like)
    table[index.flatten()] = bias.flatten(1).T
    return table


def _load_adapters(model: PTSAModel, tensors: dict[str, Tensor]) -> None:
    for name, parameter in model.method.named_parameters():
        _, key, factor, group = name.split(".")
        parameter.copy_(tensors[f"{key.replace('/', '.')}.{factor}.{group}"])


def _neutralise_norms(model: PTSAModel, tensors: dict[str, Tensor]) -> None:
    """Batch norms that add the bias of the convolution that they were folded into, and do nothing else."""
    for name, module in model.decoders.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_var is not None
            module.running_var.fill_(1 - module.eps)
            convolution = f"{name.rpartition('.')[0]}.0"
            module.bias.copy_(tensors[f"decoders.{convolution}.bias"])
