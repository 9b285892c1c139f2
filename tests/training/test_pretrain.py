import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from training.backbones import build_backbone
from training.backbones.loading import load_backbone
from training.data.photos import PhotoFolder, PhotoStream
from training.distilling.distillation import hint_loss
from training.distilling.teachers import Teacher
from training.errors import CheckpointError, ConfigError, ResumeError
from training.network.checkpoint import save_checkpoint
from training.network.model import PTSAModel
from training.pretrain import PretrainConfig, _Teaching, pretrain

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


@pytest.mark.parametrize("change", [{}, {"ema": 0.9, "accumulate": 2, "batch": 1}], ids=["plain", "averaged"])
def test_a_killed_run_resumes_to_the_same_backbone(
    config: PretrainConfig, tmp_path: Path, kill_in_step, change: dict
) -> None:
    config = replace(config, **change)
    whole = load_file(pretrain(config))
    broken = replace(config, out=tmp_path / "broken")
    kill_in_step(5, lambda: pretrain(broken))
    for name, tensor in load_file(pretrain(broken)).items():
        torch.testing.assert_close(tensor, whole[name], atol=1e-6, rtol=1e-5)


def test_the_result_loads_as_a_start(config: PretrainConfig) -> None:
    path = pretrain(replace(config, steps=2))
    backbone = build_backbone("swin_test")
    load_backbone(backbone, path)
    name = "layers.0.blocks.0.mlp.fc1.weight"
    assert torch.equal(backbone.trunk.get_parameter(name), load_file(path)[name])


def test_weights_of_another_backbone_are_refused(config: PretrainConfig) -> None:
    path = pretrain(replace(config, steps=2))
    with pytest.raises(ValueError, match="does not fit this backbone"):
        load_backbone(build_backbone("swin_nano"), path)


def test_stream_is_a_function_of_seed_and_index(data: dict[str, Path]) -> None:
    folders = [PhotoFolder(data["ccp"])]
    one, two = (PhotoStream(folders, size=32, length=9, seed=3) for _ in range(2))
    assert torch.equal(one[5], two[5])
    assert not torch.equal(one[5], one[6])


@pytest.mark.parametrize("text", ["photos=-1", "photos=x", "photos=0", "photos=nan", "photos=inf"])
def test_wrong_weight_of_a_folder_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be a positive number"):
        PhotoFolder.parse(text)


def test_missing_photos_and_teachers_are_named(config: PretrainConfig, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder of photos"):
        pretrain(replace(config, photos=["nowhere"]))
    with pytest.raises(FileNotFoundError, match=r"missing\.json: no such file"):
        pretrain(replace(config, teachers=[str(tmp_path / "missing")]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teachers": []}, "--teachers names none"),
        ({"photos": []}, "--photos names none"),
        ({"size": 50}, "--size is 50; it must be a multiple of 32"),
        ({"batch": 0}, "--batch is 0"),
        ({"steps": 0}, "--steps is 0"),
        ({"save_every": 0}, "--save_every is 0"),
        ({"rate": -1.0}, "--rate is -1.0"),
        ({"backbone": "resnet"}, "--backbone 'resnet' is unknown"),
    ],
)
def test_options_with_which_nothing_can_be_learnt_are_refused(
    config: PretrainConfig, change: dict, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(config, **change)


def test_a_run_goes_on_with_its_own_settings_photos_and_teachers_alone(
    config: PretrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(config, steps=2)
    path = pretrain(config)
    before = path.read_bytes()
    for suffix in ("json", "safetensors"):
        shutil.copy(f"{config.teachers[0]}.{suffix}", tmp_path / f"other.{suffix}")
    weights = load_file(tmp_path / "other.safetensors")
    save_file({**weights, "a.bias": weights["a.bias"] + 1}, tmp_path / "other.safetensors")
    for change, message in (
        ({"rate": 0.1, "steps": 4}, "steps was 2, now 4; rate was 0.001, now 0.1"),
        ({"photos": [config.photos[0], config.photos[1].replace("0.5", "0.6")]}, "photos.2.weight was 0.5, now 0.6"),
        ({"photos": config.photos[:1]}, "photos.2.photos was 5, now None"),
        ({"teachers": [str(tmp_path / "other")]}, r"teachers.1.safetensors was \w{12}\.\.\., now"),
        ({"size": 96}, "size was 64, now 96"),
        ({"ema": 0.9, "accumulate": 2}, "accumulate was 1, now 2; ema was 0.0, now 0.9"),
    ):
        with pytest.raises(ResumeError, match=message):
            pretrain(replace(config, **change))
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *_: pytest.fail("it trains"))
    assert pretrain(replace(config, save_every=1)).read_bytes() == before
    assert "this run is finished" in capsys.readouterr().err


def test_what_targets_are_scaled_by_goes_to_the_device(config: PretrainConfig) -> None:
    """On a GPU a resumed run meets predictions there; the meta device refuses tensors of the CPU as a GPU does."""
    device = torch.device("meta")
    teach = _Teaching(config, device)
    teach.scale({target.name: (torch.zeros(target.channels), torch.ones(target.channels)) for target in teach.targets})
    taught = teach(torch.zeros(1, 3, 64, 64, device=device))
    for target, map_ in zip(teach.targets, taught, strict=True):
        assert hint_loss(target, map_.permute(0, 2, 3, 1), map_).device.type == "meta"


@pytest.mark.parametrize(
    "change",
    [
        lambda graph, weights: graph.pop("names"),
        lambda graph, weights: graph.update(names={"stride4": "nowhere"}),
        lambda graph, weights: graph["ops"][1].update({"in": ["nowhere"]}),
        lambda graph, weights: weights.pop("b.bias"),
        lambda graph, weights: weights.update({"b.weight": torch.zeros(6, 5, 5, 5)}),
    ],
    ids=["no names", "unknown name", "unknown input", "missing weight", "other shape"],
)
def test_a_damaged_teacher_is_named(teacher: Path, change: Callable[[dict, dict], object]) -> None:
    graph, weights = json.loads(Path(f"{teacher}.json").read_text()), load_file(f"{teacher}.safetensors")
    change(graph, weights)
    Path(f"{teacher}.json").write_text(json.dumps(graph))
    save_file(weights, f"{teacher}.safetensors")
    with pytest.raises(CheckpointError, match=rf"teacher {teacher}: .* damaged or not of one network"):
        Teacher(teacher)


def test_a_whole_model_is_no_start_of_a_backbone(model: PTSAModel, tmp_path: Path) -> None:
    save_checkpoint(model, tmp_path / "model.safetensors", info={})
    with pytest.raises(CheckpointError, match="holds a whole model; name a backbone alone"):
        load_backbone(build_backbone("swin_test"), tmp_path / "model.safetensors")
