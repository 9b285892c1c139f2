"""CONTRIBUTING's recipe for a task, followed with one made up on the spot: no file of the project is changed."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from ptsa_serve.tasks import KINDS, Kind, Task
from training.data import DATASETS
from training.data.files import read_grey, read_vectors, unit_vectors
from training.data.labels import LABELS
from training.data.photoset import PhotoSet, files_by_name
from training.evaluate import EvaluateConfig, evaluate
from training.fit import FitConfig, fit
from training.network.checkpoint import load_checkpoint, read_info
from training.network.heads import finish

MADE_UP: dict[Kind, Task] = {
    "classes": Task("weather", "classes", 3, classes=("sun", "rain", "fog"), colors=((0, 0, 0), (9, 9, 9), (99, 0, 0))),
    "metres": Task("height", "metres", 1, unit="m"),
    "unit_vectors": Task("wind", "unit_vectors", 3),
    "probability": Task("wetness", "probability", 1),
    "boundary": Task("cracks", "boundary", 1),
}


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Kind], Task]:
    """`made_up(kind)`: a new task of that kind, in a data set `own` that labels photos with it."""

    def make(kind: Kind) -> Task:
        task = MADE_UP[kind]

        class Own(PhotoSet):
            name = "own"
            size = (384, 512)
            records: Mapping[str, Task] = {task.name: task}

            def __init__(self, root: Path, split: str) -> None:
                folder = Path(root) / split
                super().__init__(files_by_name(folder, (".jpg",)), {task.name: files_by_name(folder, (".png",))})

            def read(self, name: str, path: Path, size: tuple[int, int]) -> NDArray:
                if kind == "unit_vectors":
                    return unit_vectors(path, read_vectors(path, size))
                return read_grey(path, size, "a grey PNG").astype(LABELS[kind].dtype)

        rng = np.random.default_rng(0)
        shape = (48, 64, *KINDS[kind][1])
        for split in ("train", "val"):
            (tmp_path / "own" / split).mkdir(parents=True)
            for number in range(3):
                stem = tmp_path / "own" / split / f"{number}"
                Image.fromarray(rng.integers(0, 255, (48, 64, 3), np.uint8)).save(stem.with_suffix(".jpg"))
                label = np.full(shape, (128, 128, 255)) if kind == "unit_vectors" else rng.integers(0, 2, shape)
                Image.fromarray(label.astype(np.uint8)).save(stem.with_suffix(".png"))
        monkeypatch.setitem(DATASETS, "own", Own)
        return task

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_a_task_of_a_known_kind_needs_a_data_set_and_a_place_in_the_tree(
    made_up, fit_config: FitConfig, tmp_path: Path, kind: Kind
) -> None:
    task = made_up(kind)
    tree = " / ".join([task.name] * 4)
    own = {"own": tmp_path / "own"}
    path = fit(replace(fit_config, data=own, batches={"own": 2}, tree=tree, steps=2, save_every=2))
    model = load_checkpoint(path)
    assert model.tasks == {task.name: task}
    assert read_info(path)["loss_weights"] == {task.name: LABELS[kind].weight}
    assert all(
        value is not None for value in evaluate(EvaluateConfig(path, own, scale=1 / 6))["own"][task.name].values()
    )
    map_ = finish(task, model(torch.zeros(1, 3, 64, 64))[task.name], (64, 64))[0]
    assert tuple(map_.shape) == (64, 64, *KINDS[kind][1])


def test_it_is_learnt_beside_the_tasks_of_other_sets(
    made_up, fit_config: FitConfig, archives: dict[str, Path], tmp_path: Path
) -> None:
    task = made_up("probability")
    names = f"{task.name},human_parts,segmentation,edges"
    path = fit(
        replace(
            fit_config,
            data={"pascal": archives["pascal"], "own": tmp_path / "own"},
            batches={"pascal": 2, "own": 2},
            tree=" / ".join([names] * 4),
            steps=2,
            save_every=2,
            augmentation="mtlora_pascal",
        )
    )
    assert read_info(path)["augmentation"] == "mtlora_pascal"
    tasks = load_checkpoint(path).tasks
    assert {name: record.channels for name, record in tasks.items()} == {
        "wetness": 1,
        "human_parts": 7,
        "segmentation": 21,
        "edges": 1,
    }
    result = evaluate(EvaluateConfig(path, {"pascal": archives["pascal"]}, scale=1 / 6))
    assert set(result["pascal"]) == {"segmentation", "human_parts", "edges"}
