"""Data sets say what their tasks are; a mix must agree, and a model is measured on what both mean alike."""

from dataclasses import replace
from pathlib import Path

import pytest

from ptsa_serve.manifest import TaskRecord
from ptsa_serve.tasks import TASKS
from training.data import DATASETS
from training.data.records import EDGES, agree, disagreements, shared_tasks, task_records
from training.errors import ConfigError
from training.evaluate import EvaluateConfig, evaluate
from training.network.checkpoint import save_checkpoint
from training.network.model import PTSAModel


def test_colours_are_not_what_a_task_is() -> None:
    task = TASKS["segmentation"]
    assert agree(task, replace(task, colors=task.colors[::-1]))
    assert not agree(task, replace(task, classes=task.classes[::-1]))
    assert not agree(EDGES, replace(EDGES, kind="probability"))


def test_sets_that_define_a_task_differently_are_told() -> None:
    records = {name: data.records for name, data in DATASETS.items()}
    assert disagreements(["depth", "normals", "saliency", "edges"], records) == []
    assert disagreements(["segmentation"], {"ccp": records["ccp"], "nyu": records["nyu"]}) == []
    (fault,) = disagreements(["segmentation"], {"nyud": records["nyud"], "pascal": records["pascal"]})
    assert fault.startswith(
        "segmentation is 40 classes (wall, floor, ...) in nyud, 21 classes (background, aeroplane, ...) in pascal"
    )


def test_records_come_from_the_first_set_that_has_them() -> None:
    found = task_records(["edges", "segmentation"], [DATASETS["ccp"].records, DATASETS["pascal"].records])
    assert list(found) == ["edges", "segmentation"]
    assert found["segmentation"].channels == 21
    with pytest.raises(KeyError, match="fog"):
        task_records(["fog"], [DATASETS["nyu"].records])


@pytest.mark.parametrize("name", DATASETS)
def test_every_record_can_be_written_into_a_manifest(name: str) -> None:
    for task, record in DATASETS[name].records.items():
        assert record.name == task
        assert TaskRecord.of(record).task() == record


def test_a_model_is_measured_on_what_both_mean_alike_and_the_rest_is_said(
    model: PTSAModel, archives: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_checkpoint(model, tmp_path / "model.safetensors", info={})
    assert shared_tasks(DATASETS["nyud"].records, model.tasks) == ["depth", "normals"]
    config = EvaluateConfig(tmp_path / "model.safetensors", {"nyud": archives["nyud_arrays"]}, square=64)
    assert list(evaluate(config)["nyud"]) == ["depth", "normals"]
    assert "nyud: its segmentation is another task than the model's, of other classes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"square": 100}, "--square is 100; allowed are 0 and multiples of 32"),
        ({"square": 64, "scale": 0.5}, "--square and --scale both say"),
    ],
)
def test_sizes_to_measure_at_that_make_no_sense_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EvaluateConfig(Path("x"), {"nyu": Path("y")}, **change)


def test_at_a_square_images_and_labels_have_that_size(
    model: PTSAModel, data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(model, tmp_path / "model.safetensors", info={})
    sizes = []
    original = PTSAModel.forward
    monkeypatch.setattr(
        PTSAModel,
        "forward",
        lambda self, images, *rest: sizes.append(tuple(images.shape)) or original(self, images, *rest),
    )
    measured = []
    monkeypatch.setattr(
        "training.scoring.metrics.Saliency.update", lambda self, p, label: measured.append((p.shape, label.shape))
    )
    evaluate(EvaluateConfig(tmp_path / "model.safetensors", {"ccp": data["ccp"]}, square=96))
    assert set(sizes) == {(1, 3, 96, 96)}
    assert set(measured) == {((96, 96), (96, 96))}
