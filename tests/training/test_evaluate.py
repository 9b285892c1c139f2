"""`python -m training evaluate` as a user runs it: strict JSON, figures of the labels that there are, plain errors."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ptsa_serve.task_tree import TaskTree
from training.__main__ import main
from training.data import DATASETS
from training.evaluate import EvaluateConfig, evaluate
from training.network.checkpoint import save_checkpoint
from training.network.heads import finish
from training.network.model import ModelConfig, PTSAModel
from training.scoring.metrics import metric_for

SCALE = 1 / 6


@pytest.fixture
def checkpoint(model: PTSAModel, tmp_path: Path) -> Path:
    save_checkpoint(model, tmp_path / "model.safetensors", info={})
    return tmp_path / "model.safetensors"


@pytest.fixture
def copies(data: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    for name, root in data.items():
        shutil.copytree(root, tmp_path / name)
    return {name: tmp_path / name for name in data}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def command(*arguments: object) -> None:
        monkeypatch.setattr(sys, "argv", ["training", *map(str, arguments)])
        main()

    return command


def never(text: str) -> float:
    raise AssertionError(f"{text} is no JSON")


def test_figures_without_labels_are_null_in_strict_json(
    run, checkpoint: Path, copies: dict[str, Path], capsys: pytest.CaptureFixture
) -> None:
    for path in (copies["nyu"] / "val/depth").iterdir():
        Image.fromarray(np.zeros((48, 64), np.uint16)).save(path)
    for task in ("segmentation", "normals"):
        shutil.rmtree(copies["nyu"] / "val" / task)
    for path in copies["ccp"].glob("val/*.png"):
        Image.fromarray(np.full((48, 64), 255, np.uint8)).save(path)
    sets = json.dumps({name: str(path) for name, path in copies.items()})
    run("evaluate", "--checkpoint", checkpoint, "--data", sets, "--scale", SCALE)
    printed = capsys.readouterr()
    result = json.loads(printed.out, parse_constant=never)
    assert set(result["nyu"]) == {"depth"}
    assert set(result["nyu"]["depth"].values()) == {None}
    assert set(result["ccp"]["saliency"].values()) == {None}
    assert "nyu/val: 3 photos; with labels of segmentation 0, depth 3, normals 0" in printed.err


def test_only_labelled_photos_are_in_the_figures(checkpoint: Path, copies: dict[str, Path]) -> None:
    (copies["ccp"] / "val/0000.png").unlink()
    before = evaluate(EvaluateConfig(checkpoint, {"ccp": copies["ccp"]}, scale=SCALE))
    (copies["ccp"] / "val/0000.jpg").unlink()
    assert evaluate(EvaluateConfig(checkpoint, {"ccp": copies["ccp"]}, scale=SCALE)) == before


def test_one_photo_scores_what_its_map_scores(model: PTSAModel, checkpoint: Path, data: dict[str, Path]) -> None:
    from training.network.checkpoint import load_checkpoint

    result = evaluate(EvaluateConfig(checkpoint, {"nyu": data["nyu"]}, limit=1, scale=SCALE))
    sample = DATASETS["nyu"](data["nyu"], "val")[0]
    image = torch.from_numpy(np.array(Image.fromarray(sample.image).resize((96, 64), 2))).permute(2, 0, 1)[None]
    with torch.inference_mode():
        raw = load_checkpoint(checkpoint)(image, ["depth"])["depth"]
    metric = metric_for(model.tasks["depth"])
    metric.update(finish(model.tasks["depth"], raw, (48, 64))[0].numpy(), sample.labels["depth"])
    assert result["nyu"]["depth"] == pytest.approx(metric.compute(), rel=1e-4)


def test_a_wrong_label_is_one_line_for_the_user(run, checkpoint: Path, copies: dict[str, Path]) -> None:
    Image.fromarray(np.full((48, 64), 9, np.uint8)).save(copies["nyu"] / "val/depth/0001.png")
    with pytest.raises(SystemExit, match=r"^error: .*depth/0001\.png: found 8-bit grey; .*$") as stopped:
        run("evaluate", "--checkpoint", checkpoint, "--data", json.dumps({"nyu": str(copies["nyu"])}), "--scale", SCALE)
    assert "\n" not in str(stopped.value)


def test_a_model_that_answers_no_numbers_is_no_figure(
    model: PTSAModel, checkpoint: Path, data: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.no_grad():
        next(iter(model.decoders["saliency"].parameters())).fill_(float("nan"))
    monkeypatch.setattr("training.evaluate.load_checkpoint", lambda *_: model)
    with pytest.raises(ValueError, match="answers saliency of ccp photo 0000 with no numbers; its weights"):
        evaluate(EvaluateConfig(checkpoint, {"ccp": data["ccp"]}, scale=SCALE))


def test_a_model_without_the_tasks_of_a_set_is_told_before_any_photo(data: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "saliency.safetensors"
    save_checkpoint(PTSAModel(ModelConfig("swin_test", TaskTree.shared(("saliency",)), width=8)), path, info={})
    with pytest.raises(ValueError, match="nyu has labels of segmentation, depth, normals, the model answers saliency"):
        evaluate(EvaluateConfig(path, data, scale=SCALE))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": {}}, "names no data set"),
        ({"limit": -1}, "--limit is -1; allowed are 0"),
        ({"scale": 0.0}, r"--scale is 0\.0; allowed are more than 0"),
        ({"scale": float("nan")}, "--scale is nan"),
        ({"data": {"kitti": Path()}}, "'kitti' is unknown; known are nyu, ccp"),
        ({"split": "test"}, "no photos; expected test/"),
    ],
)
def test_wrong_options_are_refused(checkpoint: Path, data: dict[str, Path], change: dict, message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        evaluate(EvaluateConfig(**({"checkpoint": checkpoint, "data": data} | change)))
