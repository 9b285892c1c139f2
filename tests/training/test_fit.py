"""Training as a user runs it, on a few small photos: it learns, it resumes, and its errors say what to do."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from ptsa_serve.task_tree import TaskTree
from training.backbones import build_backbone
from training.build import build
from training.data.nyu import NYU
from training.errors import ConfigError, DivergedError
from training.evaluate import EvaluateConfig, evaluate
from training.fit import FitConfig, fit
from training.methods import METHODS
from training.network.checkpoint import load_checkpoint, read_info, save_checkpoint
from training.network.model import ModelConfig, PTSAModel
from training.scoring.balance import balance

FROZEN = dict.fromkeys(("merge", "norms", "tables", "patch"), "frozen")


@pytest.fixture
def config(fit_config: FitConfig) -> FitConfig:
    return fit_config


def test_full_then_adapted_then_evaluated(config: FitConfig, tmp_path: Path) -> None:
    full = fit(config)
    adapted = fit(replace(config, method="ptsa", rank=2, start=full, out=tmp_path / "adapted", options=FROZEN))
    before, after = load_file(full), load_file(adapted)
    for name in before:
        if name.startswith("backbone."):
            assert torch.equal(after[name], before[name])
    assert any(after[name].any() for name in after if ".up." in name)
    assert read_info(adapted)["start"]["file"] == "model.safetensors"
    result = evaluate(EvaluateConfig(adapted, config.data, scale=1 / 6))
    assert set(result["nyu"]) == {"segmentation", "depth", "normals"}
    assert set(result["ccp"]) == {"saliency"}
    assert result["nyu"]["depth"]["RMSE_m"] > 0


def test_a_killed_run_resumes_to_the_same_result(config: FitConfig, kill_in_step, tmp_path: Path) -> None:
    whole = load_file(fit(config))
    broken = replace(config, out=tmp_path / "broken")
    kill_in_step(5, lambda: fit(broken))
    assert not (broken.out / "model.safetensors").exists()
    resumed = load_file(fit(broken))
    # Matrices are stored in fp16, whose step is 5e-4 of the value; everything else would be a defect.
    for name, tensor in whole.items():
        torch.testing.assert_close(resumed[name], tensor, atol=1e-6, rtol=1e-3)


def test_checkpoint_gives_back_the_model(config: FitConfig, tmp_path: Path) -> None:
    path = fit(replace(config, steps=2))
    one, two = load_checkpoint(path), load_checkpoint(path)
    images = torch.rand(1, 3, 64, 64) * 255
    for task, raw in one(images).items():
        assert torch.equal(raw, two(images)[task])


def test_training_lowers_the_loss(config: FitConfig) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fit(replace(config, steps=30, rate=3e-3, backbone_rate=3e-3, save_every=30))
    events = EventAccumulator(str(config.out / "logs")).Reload()
    for task in ("segmentation", "depth", "saliency"):
        values = [event.value for event in events.Scalars(f"loss/{task}")]
        assert np.mean(values[-5:]) < 0.95 * np.mean(values[:5])


def test_missing_data_names_folder_and_layout(config: FitConfig, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no photos; expected train/"):
        fit(replace(config, data={**config.data, "nyu": tmp_path / "nowhere"}))


def test_a_label_of_another_size_names_the_file(config: FitConfig, tmp_path: Path) -> None:
    copy = tmp_path / "nyu"
    shutil.copytree(config.data["nyu"], copy)
    for path in (copy / "train/depth").iterdir():
        Image.fromarray(np.ones((10, 10), np.uint16)).save(path)
    with pytest.raises(ValueError, match=r"depth/\d{4}\.png: the label is 10 x 10 pixels, its photo 64 x 48"):
        fit(replace(config, data={**config.data, "nyu": copy}))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_names_task_photos_and_a_remedy_that_works(
    config: FitConfig, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    import training.fit

    monkeypatch.setattr(training.fit, "task_loss", lambda task, raw, *rest: (raw.square().sum() + 1) * value)
    with pytest.raises(
        DivergedError, match=rf"segmentation is {value}.* for nyu photos 000\d, 000\d; .* new --out folder"
    ):
        fit(config)


def test_gradients_that_are_not_finite_name_the_photos(config: FitConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    import training.fit

    # The square root's slope at 0 is infinite, and 0 times that is no number: the loss is 0 and fine.
    monkeypatch.setattr(training.fit, "task_loss", lambda task, raw, *rest: (raw * 0).sum().sqrt())
    with pytest.raises(
        DivergedError, match=r"gradients of nyu photos 000\d, 000\d; ccp photos .* are not finite; look"
    ):
        fit(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "ptsa", "rank": -1}, "rank is -1; allowed are 0"),
        ({"method": "ptsa", "options": {"merge": "melt"}}, "merge is 'melt'; allowed are train, lora, frozen"),
        ({"method": "ptsa", "options": {"alpha": 2}}, "ptsa has no option 'alpha'; it has merge, norms"),
        ({"rank": 2}, "multi_task has no option 'rank'; it has none"),
        ({"method": "prompt"}, "'prompt' is unknown; known are single_task, multi_task"),
        ({"method": "ptsa"}, "without --start would freeze a backbone of random weights"),
        ({"decoder": "unet"}, "--decoder 'unet' is unknown; known are pyramid, hrnet"),
        ({"data": {}}, "--data names no data set; known are nyu, ccp"),
        ({"data": {"cityscapes": Path()}}, "known are nyu, ccp"),
        ({"data": {"nyu": Path()}, "batches": {"nyu": 2}}, "no data set of --data labels saliency"),
        ({"tree": "depth / depth / depth / depth"}, "data set ccp labels nothing that --tree names"),
        ({"tree": "depth,fog / depth,fog / depth,fog / depth,fog"}, "task 'fog' is unknown; known are"),
        ({"tree": "edges / edges / edges / edges"}, r"no data set of --data labels edges \(nyud or pascal can\)"),
        (
            {"data": {"nyu": Path(), "nyud": Path()}},
            r"segmentation is 39 classes \(wall, floor, ...\) in nyu, 40 classes",
        ),
        ({"tree": "depth / depth"}, "has 2 stages, the backbone has 4"),
        ({"tree": "depth,saliency / depth | saliency / depth,saliency / depth,saliency"}, "--tree: stage 3 joins"),
        ({"batches": {"nyu": 1}}, "--batches has nothing for ccp"),
        ({"batches": {"nyu": 0, "ccp": 1}}, "--batches has 0 for nyu"),
        ({"batches": {"nyu": 1, "ccp": 1, "coco": 1}}, "--batches names coco, --data does not"),
        ({"backbone": "resnet"}, "--backbone 'resnet' is unknown"),
        ({"steps": 0}, "--steps is 0; it must be from 1 to"),
        ({"save_every": 0}, "--save_every is 0"),
        ({"rate": -1e-3}, "--rate is -0.001"),
        ({"rate": float("nan")}, "--rate is nan"),
        ({"rate": float("inf")}, "--rate is inf"),
        ({"backbone_rate": 0}, "--backbone_rate is 0"),
        ({"weight_decay": -0.1}, "--weight_decay is -0.1"),
        ({"drop_path": 1.0}, "--drop_path is 1.0"),
        ({"scale": 0}, "--scale is 0"),
        ({"seed": -1}, "--seed is -1"),
        ({"workers": -1}, "--workers is -1"),
        ({"width": 0}, "--width is 0"),
        ({"warmup": -1}, "--warmup is -1"),
    ],
)
def test_options_with_which_nothing_can_be_trained_are_refused(config: FitConfig, change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(config, **change)


def test_the_default_batches_are_for_the_sets_that_are_there() -> None:
    tree = "depth / depth / depth / depth"
    assert FitConfig({"nyu": Path()}, Path("out"), method="multi_task", tree=tree).batches["nyu"] == 12


def test_a_task_whose_labels_are_missing_on_disk_is_refused(config: FitConfig, tmp_path: Path) -> None:
    copy = tmp_path / "nyu"
    shutil.copytree(config.data["nyu"], copy)
    shutil.rmtree(copy / "train/depth")
    with pytest.raises(ConfigError, match=r"no data set of --data labels depth \(nyu or nyud or labelled can\)"):
        fit(replace(config, data={**config.data, "nyu": copy}))


def test_class_weights_are_where_the_model_is(config: FitConfig) -> None:
    """On a GPU a loss meets labels there; the meta device stands for it, as it refuses tensors of the CPU too."""
    weights = balance({"nyu": NYU(config.data["nyu"], "train")}, build(config), torch.device("meta"))
    assert weights["segmentation"].device.type == "meta"
    assert weights["segmentation"].shape == (39,)


def test_class_weights_are_of_all_sets(config: FitConfig) -> None:
    one, model, device = NYU(config.data["nyu"], "train"), build(config), torch.device("cpu")
    other = NYU(config.data["nyu"], "val")
    apart = [balance({"nyu": data}, model, device)["segmentation"] for data in (one, other)]
    both = balance({"nyu": one, "labelled": other}, model, device)["segmentation"]
    assert (apart[0] - apart[1]).abs().max() > 0.01
    assert not any(torch.allclose(both, weights) for weights in apart)
    torch.testing.assert_close(balance({"nyu": other, "labelled": one}, model, device)["segmentation"], both)


@pytest.mark.parametrize("method", METHODS)
def test_everything_that_a_model_computes_with_moves_with_it(config: FitConfig, method: str, tmp_path: Path) -> None:
    save_file(build_backbone("swin_test").trunk.state_dict(), tmp_path / "backbone.safetensors")
    run: dict[str, Any] = {"method": method, "start": tmp_path / "backbone.safetensors"}
    if METHODS[method].experts:
        whole = ModelConfig("swin_test", TaskTree.parse(config.tree), "multi_task", width=8)
        save_checkpoint(PTSAModel(whole), tmp_path / "whole.safetensors", info={})
        run["experts"] = dict.fromkeys(whole.tree.tasks, tmp_path / "whole.safetensors")
    model = build(replace(config, **run)).to("meta")
    for size in ((64, 96), (96, 64)):
        raw = model(torch.zeros(1, 3, *size, dtype=torch.uint8, device="meta"))
        assert {planes.device.type for planes in raw.values()} == {"meta"}


def test_the_checkpoint_says_what_was_run(config: FitConfig) -> None:
    info = read_info(fit(config))
    assert (info["rate"], info["backbone_rate"], info["weight_decay"]) == (1e-3, 4e-4, 0.05)
    assert (info["scale"], info["method"], info["precision"], info["device"]) == (1 / 6, "multi_task", "32-true", "cpu")
    assert info["loss_weights"]["normals"] == 3.0
    assert info["data"]["nyu"]["photos"] == 5


def test_adapters_on_a_backbone_alone_start_with_random_decoders_and_say_so(
    config: FitConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "backbone.safetensors"
    save_file(build_backbone("swin_test").trunk.state_dict(), path)
    model = build(replace(config, start=path, method="ptsa"))
    stored = load_file(path)["layers.0.blocks.0.mlp.fc1.weight"]
    frozen = model.get_parameter("backbone.trunk.layers.0.blocks.0.mlp.fc1.weight")
    assert torch.equal(frozen, stored.half().float())
    assert "has no decoder of segmentation, depth, normals, saliency" in capsys.readouterr().err


def test_published_weights_are_a_start_and_are_named(config: FitConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fetched by timm; the network here is one of timm's with random weights."""
    import timm
    from timm.models.swin_transformer import SwinTransformer

    from training.backbones.loading import HUB
    from training.backbones.swin import SWINS

    network = SwinTransformer(img_size=224, window_size=7, num_classes=0, **SWINS["swin_test"])
    monkeypatch.setattr(timm, "create_model", lambda name, **options: network)
    monkeypatch.setitem(HUB, "swin_test", "swin_test.random")
    run = replace(config, method="single_task", pretrained=True)
    model = build(run)
    name = "layers.0.blocks.0.mlp.fc1"
    expected = network.get_submodule(name).weight
    assert torch.equal(model.backbone.trunk.get_submodule(name).weight, expected.half().float())
    assert torch.equal(model.get_parameter(f"method.changes.{name.replace('.', '/')}.copies.3.weight"), expected)
    assert read_info(fit(replace(run, steps=1)))["pretrained"] is True
    with pytest.raises(ConfigError, match="--start and --pretrained are two beginnings"):
        replace(run, start=Path("x"))
