"""Training as a user runs it, on a few small photos: it learns, it resumes, and its errors say what to do."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from training.checkpoint import load_checkpoint, read_info
from training.evaluate import EvaluateConfig, evaluate
from training.fit import FitConfig, build, fit


@pytest.fixture
def config(data: dict[str, Path], tmp_path: Path) -> FitConfig:
    return FitConfig(
        data=data,
        out=tmp_path / "run",
        train="all",
        backbone="swin_test",
        ranks=[2, 2, 2, 2],
        width=8,
        batches={"nyu": 2, "ccp": 2},
        steps=6,
        warmup=1,
        scale=1 / 6,
        workers=0,
        precision="32-true",
        save_every=2,
    )


def test_full_then_adapted_then_evaluated(config: FitConfig, tmp_path: Path) -> None:
    full = fit(config)
    adapted = fit(replace(config, train="adapters", start=full, out=tmp_path / "adapted"))
    before, after = load_file(full), load_file(adapted)
    frozen = [name for name in before if name.startswith("backbone.") and "norm" not in name]
    for name in frozen:
        owner, _, leaf = name.rpartition(".")
        same = after.get(f"{owner}.frozen.{leaf}", after.get(name))
        torch.testing.assert_close(same, before[name], atol=1e-3, rtol=1e-3)  # vectors are rounded to fp16 when frozen
    assert any(after[name].any() for name in after if name.endswith(".up"))
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

    fit(replace(config, steps=30, rate=3e-3, backbone_rate=3e-3))
    events = EventAccumulator(str(config.out / "logs")).Reload()
    for task in ("segmentation", "depth", "saliency"):
        values = [event.value for event in events.Scalars(f"loss/{task}")]
        assert np.mean(values[-5:]) < 0.95 * np.mean(values[:5])


def test_missing_data_names_folder_and_layout(config: FitConfig, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no photos; expected train/"):
        fit(replace(config, data={"nyu": tmp_path / "nowhere"}))


def test_a_label_of_another_size_names_the_file(config: FitConfig, tmp_path: Path) -> None:
    copy = tmp_path / "nyu"
    shutil.copytree(config.data["nyu"], copy)
    for path in (copy / "train/depth").iterdir():
        Image.fromarray(np.ones((10, 10), np.uint16)).save(path)
    with pytest.raises(ValueError, match=r"depth/\d{4}\.png: the label is 10 x 10 pixels, its photo 64 x 48"):
        fit(replace(config, data={"nyu": copy}))


def test_a_nan_loss_names_task_photos_and_remedy(config: FitConfig, monkeypatch) -> None:
    import training.fit

    monkeypatch.setattr(training.fit, "task_loss", lambda task, raw, *rest: raw[task.kind == "metres"].sum() * np.nan)
    with pytest.raises(ValueError, match=r"not a number for nyu photos 000\d, 000\d; .* lower --rate"):
        fit(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ranks": [1, 2]}, "--ranks needs 4 numbers"),
        ({"batches": {"nyu": 1}}, "--batches has nothing for ccp"),
        ({"data": {"cityscapes": Path()}}, "known are nyu, ccp"),
    ],
)
def test_wrong_options_are_refused(config: FitConfig, change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(config, **change)


def test_adapting_a_bare_backbone_is_refused(config: FitConfig, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    from training.swin import build_swin

    path = tmp_path / "backbone.safetensors"
    save_file(build_swin("swin_test").state_dict(), path)
    build(replace(config, start=path))
    with pytest.raises(ValueError, match="holds a backbone alone"):
        build(replace(config, start=path, train="adapters"))
