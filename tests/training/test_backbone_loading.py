"""Weights of every layout in every kind of file, and what is told of those that do not fit."""

import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from ptsa_serve.task_tree import TaskTree
from training.backbones import Backbone, build_backbone
from training.backbones.loading import HUB, load_backbone, pretrained
from training.backbones.pvt import PVTS
from training.backbones.swin import SWINS
from training.errors import CheckpointError, ConfigError
from training.network.model import ModelConfig, PTSAModel
from training.network.start import take_over

TINY = ("swin_test", "pvt_test")
State = dict[str, Tensor]


def official_swin(state: State) -> State:
    """As microsoft/Swin-Transformer writes it: merging ends a stage, buffers, final norm and classifier are in it."""
    moved = {re.sub(r"layers\.(\d)\.downsample", lambda at: f"layers.{int(at[1]) - 1}.downsample", k): v
             for k, v in state.items()}  # fmt: skip
    width = max(len(v) for k, v in state.items() if k.endswith("norm1.weight"))
    extra = {
        "layers.0.blocks.0.attn.relative_position_index": torch.zeros(49, 49, dtype=torch.long),
        "layers.0.blocks.1.attn_mask": torch.zeros(64, 49, 49),
        "norm.weight": torch.ones(width),
        "norm.bias": torch.zeros(width),
        "head.weight": torch.zeros(1000, width),
        "head.bias": torch.zeros(1000),
    }
    return moved | extra


def official_pvt(state: State) -> State:
    """As whai362/PVT writes it, with a classifier."""
    found = {"head.weight": torch.zeros(1000, 16), "head.bias": torch.zeros(1000)}
    for name, tensor in state.items():
        name = re.sub(r"^patch_embed", "patch_embed1", name)
        name = re.sub(r"^stages\.(\d)\.downsample", lambda at: f"patch_embed{int(at[1]) + 1}", name)
        name = re.sub(r"^stages\.(\d)\.blocks", lambda at: f"block{int(at[1]) + 1}", name)
        name = re.sub(r"^stages\.(\d)\.norm", lambda at: f"norm{int(at[1]) + 1}", name)
        found[name.replace("mlp.dwconv", "mlp.dwconv.dwconv")] = tensor
    return found


OFFICIAL: dict[str, Callable[[State], State]] = {"swin_test": official_swin, "pvt_test": official_pvt}


def written(path: Path, state: State) -> Path:
    if path.suffix == ".safetensors":
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    else:
        torch.save({"model": state} if path.stem == "nested" else state, path)
    return path


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer networks that a file may look like: each is built to see."""
    for table in (SWINS, PVTS):
        for name in [name for name in table if name in HUB]:
            monkeypatch.delitem(table, name)


def equal(backbone: Backbone, state: State) -> bool:
    return all(torch.equal(tensor, state[name]) for name, tensor in backbone.trunk.state_dict().items())


@pytest.mark.parametrize("file", ["plain.safetensors", "plain.pth", "nested.pth", "nested.bin"])
@pytest.mark.parametrize("layout", ["timm", "official"])
@pytest.mark.parametrize("name", TINY)
def test_weights_of_both_layouts_load_from_every_file(name: str, layout: str, file: str, tmp_path: Path) -> None:
    state = build_backbone(name).trunk.state_dict()
    stored = OFFICIAL[name](state) if layout == "official" else state
    backbone = build_backbone(name)
    assert not equal(backbone, state)
    load_backbone(backbone, written(tmp_path / file, stored))
    assert equal(backbone, state)


@pytest.mark.parametrize("name", TINY)
def test_half_precision_becomes_single(name: str, tmp_path: Path) -> None:
    state = {key: tensor.half() for key, tensor in build_backbone(name).trunk.state_dict().items()}
    backbone = build_backbone(name)
    load_backbone(backbone, written(tmp_path / "half.pth", state))
    assert equal(backbone, {key: tensor.float() for key, tensor in state.items()})
    assert {parameter.dtype for parameter in backbone.parameters()} == {torch.float32}


def test_position_tables_of_another_window_are_resized(tmp_path: Path) -> None:
    """A table that grows with the offset still does, evenly to both sides; no offset keeps its value."""
    state = build_backbone("swin_test").trunk.state_dict()
    plane = torch.arange(-11.0, 12.0)[:, None] + torch.zeros(23)
    for key, tensor in state.items():
        if key.endswith("bias_table"):
            state[key] = plane.flatten()[:, None].repeat(1, tensor.shape[1])
    backbone = build_backbone("swin_test")
    load_backbone(backbone, written(tmp_path / "window12.safetensors", state))
    table = backbone.trunk.get_parameter("layers.2.blocks.1.attn.relative_position_bias_table")[:, 1].view(13, 13)
    assert (table.diff(dim=0) > 0).all()
    torch.testing.assert_close(table, -table.flip(0), atol=1e-4, rtol=0)
    torch.testing.assert_close(table[6], torch.zeros(13), atol=1e-4, rtol=0)


class Malicious:
    """Whoever unpickles it without care makes a folder."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable, tuple]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value, 2))])
def test_no_pickle_is_run(save: Callable[[Any, Path], Any], tmp_path: Path) -> None:
    mark = tmp_path / "run"
    for value in (Malicious(mark), {"x": Malicious(mark), "model": build_backbone("swin_test").trunk.state_dict()}):
        save(value, tmp_path / "x.pth")
        with pytest.raises(CheckpointError, match=r"x\.pth holds Python objects \(.*mkdir\), which are not run; save"):
            load_backbone(build_backbone("swin_test"), tmp_path / "x.pth")
    assert not mark.exists()


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("name", ["x.pth", "x.safetensors", "x.dat"])
def test_damaged_files_are_named(name: str, tmp_path: Path) -> None:
    whole = written(tmp_path / f"whole{Path(name).suffix}".replace("dat", "safetensors"), {"a": torch.zeros(99)})
    data = whole.read_bytes()

    @given(st.integers(0, len(data) - 1), st.binary(max_size=9))
    @settings(max_examples=60, deadline=None)
    def law(length: int, end: bytes) -> None:
        (tmp_path / name).write_bytes(data[:length] + end)
        with pytest.raises(CheckpointError, match=rf"{name} (is no|holds|does not fit)"):
            load_backbone(build_backbone("pvt_test"), tmp_path / name)

    law()


@pytest.mark.parametrize("value", [{}, [1], {"model": 3}, {1: torch.zeros(2)}, {"epoch": 3, "w": torch.zeros(2)}])
def test_files_without_weights_are_refused(value: object, tmp_path: Path) -> None:
    torch.save(value, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"x\.pth holds no tensors by name, .* save a state_dict"):
        load_backbone(build_backbone("pvt_test"), tmp_path / "x.pth")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.pth: no such file of backbone weights"):
        load_backbone(build_backbone("pvt_test"), tmp_path / "none.pth")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(value: float, tmp_path: Path) -> None:
    state = build_backbone("pvt_test").trunk.state_dict()
    state["stages.1.norm.bias"][2] = value
    with pytest.raises(CheckpointError, match=r"\['stages.1.norm.bias'\] hold infinity or NaN"):
        load_backbone(build_backbone("pvt_test"), written(tmp_path / "x.pth", state))


@pytest.mark.usefixtures("few")
def test_what_is_missing_left_over_or_of_another_shape_is_told(tmp_path: Path) -> None:
    state = build_backbone("pvt_test").trunk.state_dict()
    for name in [name for name in state if name.startswith("stages.3.blocks.0.attn")]:
        del state[name]
    state |= {"decoder.weight": torch.zeros(3), "stages.0.norm.bias": torch.zeros(3)}
    backbone = build_backbone("pvt_test")
    before = {name: tensor.clone() for name, tensor in backbone.trunk.state_dict().items()}
    message = (
        r"does not fit this backbone, pvt_test: missing stages.3.blocks.0.attn.q.weight, "
        r"stages.3.blocks.0.attn.q.bias and 4 more; left over decoder.weight; "
        r"other shapes stages.0.norm.bias \(3,\) instead of \(8,\)\. It looks like none of swin_nano, "
    )
    with pytest.raises(CheckpointError, match=message):
        load_backbone(backbone, written(tmp_path / "x.pth", state))
    assert equal(backbone, before)


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("layout", ["timm", "official"])
@pytest.mark.parametrize(("name", "other"), [("swin_test", "pvt_test"), ("pvt_test", "swin_test")])
def test_weights_of_another_family_are_recognised(name: str, other: str, layout: str, tmp_path: Path) -> None:
    state = build_backbone(name).trunk.state_dict()
    path = written(tmp_path / "x.pth", OFFICIAL[name](state) if layout == "official" else state)
    with pytest.raises(CheckpointError, match=rf"not fit this backbone, {other}: .*like {name}: .*--backbone"):
        load_backbone(build_backbone(other), path)


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("change", [{"depths": (1, 1, 3, 1)}, {"embed_dim": 24}, {"num_heads": (1, 1, 2, 3)}])
def test_weights_of_another_size_are_recognised(
    change: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SWINS, "swin_other", {**SWINS["swin_test"], **change})
    path = written(tmp_path / "x.pth", official_swin(build_backbone("swin_other").trunk.state_dict()))
    with pytest.raises(CheckpointError, match="It looks like swin_other"):
        load_backbone(build_backbone("swin_test"), path)


def test_fit_starts_from_a_file_of_torch(tmp_path: Path) -> None:
    state = build_backbone("pvt_test").trunk.state_dict()
    model = PTSAModel(ModelConfig("pvt_test", TaskTree.shared(("depth",)), options={"rank": 2}, width=8))
    take_over(model, written(tmp_path / "official.pth", official_pvt(state)))
    assert equal(model.backbone, state)


@pytest.mark.parametrize("name", TINY)
def test_published_weights_come_from_timm(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """timm's own network of that size, random weights in the place of those that it would fetch."""
    original, asked = timm.create_model, []

    def create(model_name: str, *, pretrained: bool, **kwargs: Any) -> torch.nn.Module:
        asked.append((model_name, pretrained))
        own = SWINS["swin_test"] if name == "swin_test" else PVTS["pvt_test"]
        network = original(model_name, pretrained=False, **kwargs, **own)
        found.update(network.state_dict())
        return network

    found: State = {}
    published = "swin_tiny" if name == "swin_test" else "pvt_v2_b0"
    monkeypatch.setitem(HUB, name, HUB[published])
    monkeypatch.setattr(timm, "create_model", create)
    backbone = build_backbone(name)
    pretrained(backbone)
    assert asked == [(HUB[published], True)]
    assert equal(backbone, found)


@pytest.mark.parametrize("name", HUB)
def test_published_weights_exist_in_timms_registry(name: str) -> None:
    assert HUB[name] in timm.list_pretrained(f"{HUB[name].split('.')[0]}.*")


def test_without_a_network_the_error_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError) as caught:
        pretrained(build_backbone("pvt_v2_b0"))
    message = str(caught.value)
    assert "timm cannot fetch pvt_v2_b0.in1k (LocalEntryNotFoundError: " in message
    assert message.endswith("model.safetensors of https://huggingface.co/timm/pvt_v2_b0.in1k and name it with --start")
    assert "\n" not in message


def test_ours_has_no_published_weights() -> None:
    with pytest.raises(ConfigError, match=r"nobody published weights of swin_nano, only of swin_tiny, .*--start"):
        pretrained(build_backbone("swin_nano"))


def test_a_published_network_is_recognised_among_all(tmp_path: Path) -> None:
    path = written(tmp_path / "x.safetensors", official_pvt(build_backbone("pvt_v2_b0").trunk.state_dict()))
    with pytest.raises(CheckpointError, match="It looks like pvt_v2_b0: name that"):
        load_backbone(build_backbone("swin_nano"), path)
