import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from training.data.photos import PhotoFolder, PhotoStream
from training.pretrain import PretrainConfig, pretrain
from training.swin import build_swin, load_swin
from training.teachers import Teacher

CONV = {"op": "CONV_2D", "dilation": 1, "padding": "same", "relu6": False, "relu": True}


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    """A small convolutional network in the format of the real teachers: strides 4, 8, 16, 32 and logits."""
    ops, weights, last, channels = [], {}, "t0", 3
    for name, stride in (("a", 4), ("b", 2), ("c", 2), ("d", 2)):
        ops.append({**CONV, "in": [last], "out": name, "stride": stride})
        weights[f"{name}.weight"] = torch.randn(6, channels, 5, 5).half()
        weights[f"{name}.bias"] = torch.randn(6)
        last, channels = name, 6
    ops.append({"op": "AVERAGE_POOL_2D", "in": ["d"], "out": "e"})
    names = {"stride4": "a", "stride8": "b", "stride16": "c", "stride32": "d", "logits": "e"}
    (tmp_path / "teacher.json").write_text(json.dumps({"input": "t0", "names": names, "ops": ops}))
    save_file(weights, tmp_path / "teacher.safetensors")
    return tmp_path / "teacher"


@pytest.fixture
def config(data: dict[str, Path], teacher: Path, tmp_path: Path) -> PretrainConfig:
    return PretrainConfig(
        photos=[str(data["ccp"]), f"{data['nyu'] / 'train/image'}=0.5"],
        teachers=[str(teacher)],
        out=tmp_path / "out",
        backbone="swin_test",
        steps=6,
        batch=2,
        size=64,
        warmup=1,
        workers=0,
        precision="32-true",
        save_every=2,
    )


def test_teacher_gives_each_named_map_at_its_stride(teacher: Path) -> None:
    maps = Teacher(teacher)(torch.rand(2, 3, 64, 96) * 255)
    assert {name: tuple(m.shape[2:]) for name, m in maps.items()} == {
        "stride4": (16, 24),
        "stride8": (8, 12),
        "stride16": (4, 6),
        "stride32": (2, 3),
        "logits": (1, 1),
    }


def test_a_killed_run_resumes_to_the_same_backbone(config: PretrainConfig, tmp_path: Path, kill_in_step) -> None:
    whole = load_file(pretrain(config))
    broken = replace(config, out=tmp_path / "broken")
    kill_in_step(5, lambda: pretrain(broken))
    for name, tensor in load_file(pretrain(broken)).items():
        torch.testing.assert_close(tensor, whole[name], atol=1e-6, rtol=1e-5)


def test_the_result_loads_as_a_start(config: PretrainConfig) -> None:
    path = pretrain(replace(config, steps=2))
    swin = build_swin("swin_test")
    load_swin(swin, path)
    assert torch.equal(swin.layers[0].blocks[0].mlp.fc1.weight, load_file(path)["layers.0.blocks.0.mlp.fc1.weight"])


def test_weights_of_another_backbone_are_refused(config: PretrainConfig) -> None:
    path = pretrain(replace(config, steps=2))
    with pytest.raises(ValueError, match="does not fit this backbone"):
        load_swin(build_swin("swin_nano"), path)


def test_stream_is_a_function_of_seed_and_index(data: dict[str, Path]) -> None:
    folders = [PhotoFolder(data["ccp"])]
    one, two = (PhotoStream(folders, size=32, length=9, seed=3) for _ in range(2))
    assert torch.equal(one[5], two[5])
    assert not torch.equal(one[5], one[6])


@pytest.mark.parametrize("text", ["photos=-1", "photos=x", "photos=0"])
def test_wrong_weight_of_a_folder_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be a positive number"):
        PhotoFolder.parse(text)


def test_missing_photos_and_teachers_are_named(config: PretrainConfig, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder of photos"):
        pretrain(replace(config, photos=["nowhere"]))
    with pytest.raises(FileNotFoundError, match=r"missing\.json: no such file"):
        pretrain(replace(config, teachers=[str(tmp_path / "missing")]))
