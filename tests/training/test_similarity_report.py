import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib import colormaps
from PIL import Image

from ptsa_serve.task_tree import TaskTree
from training.allocation.counts import from_counts
from training.errors import ConfigError
from training.similarity.config import SimilarityConfig
from training.similarity.measures import MEASURES
from training.similarity.picture import heat_maps
from training.similarity.record import Similarity, Skipped, read_similarity
from training.similarity.report import choose_tree, save_report

TASKS = ("segmentation", "depth", "normals", "saliency")


def found(tasks: tuple[str, ...] = TASKS, error: float = 0.001) -> Similarity:
    """A measurement with a clear tree: depth and normals belong together, and so do the others."""
    rng = np.random.default_rng(0)
    shape = (5, len(tasks), len(tasks))
    values = rng.uniform(0.1, 0.2, shape)
    means = (values + values.transpose(0, 2, 1)) / 2
    if len(tasks) == 4:
        means[:, [1, 2], [2, 1]] = 0.6
    own = np.eye(len(tasks), dtype=bool)
    means[:, own], errors = 1, np.where(own, 0, np.full(shape, error))
    skipped = {task: Skipped() for task in tasks}
    measures = {name: means + (0 if name == "unit" else 1e-3) * ~own for name in MEASURES}
    return Similarity(tasks, measures, dict.fromkeys(MEASURES, errors), np.full(shape, 64), skipped, 64, 12.5)


def config(**changes: object) -> SimilarityConfig:
    return SimilarityConfig(**({"data": {"nyu": Path("nyu")}, "out": Path("run"), "start": Path("x")} | changes))  # pyright: ignore


def groups(tree: TaskTree) -> float:
    return float(sum(tree.counts))


def test_the_tree_is_that_of_the_counts_or_of_the_limits() -> None:
    matrices = found().stages()
    assert choose_tree(found(), config(), {}).tree == from_counts(TASKS, matrices, (1, 2, 2, 4))
    assert choose_tree(found(), config(counts=[1, 1, 2, 4]), {}).tree == from_counts(TASKS, matrices, (1, 1, 2, 4))
    costs = {"multiply-adds": groups, "trainable parameters": groups}
    choice = choose_tree(found(), config(max_multiply_adds=6, max_trainable=100), costs)
    assert groups(choice.tree) <= 6
    assert choice.costs == {"trainable parameters": 6, "multiply-adds": 6}
    with pytest.raises(ConfigError, match="costs 4 multiply-adds, allowed are 3"):
        choose_tree(found(), config(max_multiply_adds=3), {"multiply-adds": groups})


def test_a_report_is_files_and_a_text_with_the_tree_and_the_share_of_training(tmp_path: Path) -> None:
    choice = choose_tree(found(), config(max_multiply_adds=9), {"multiply-adds": groups})
    text = save_report(tmp_path / "run", found(), choice, seconds=12, training_seconds=960)
    files = {path.name: path for path in (tmp_path / "run").iterdir()}
    assert set(files) == {"similarity.json", "similarity.png", "tree.json", "tree.png", "tree.txt"}
    assert read_similarity(files["similarity.json"]).to_json() == found().to_json()
    assert TaskTree.from_json(json.loads(files["tree.json"].read_text())) == choice.tree
    assert files["tree.txt"].read_text(encoding="utf-8") == text + "\n"
    assert f"tree: {choice.tree}" in text
    assert "multiply-adds: 9" in text
    assert "found in 12 s, 1.2% of the 960 s of training that follow" in text
    assert "warning" not in text
    for name in ("similarity.png", "tree.png"):
        with Image.open(files[name]) as image:
            image.verify()


def test_a_dear_measurement_and_an_uncertain_tree_are_warned_of(tmp_path: Path) -> None:
    unsure = found(error=0.5)
    text = save_report(tmp_path, unsure, choose_tree(unsure, config(), {}), seconds=60, training_seconds=960)
    assert "warning: more than 5%; fewer --observations" in text
    assert "warning: the tree is not certain" in text


def test_a_folder_that_cannot_be_written_is_an_oserror_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    choice = choose_tree(found(), config(), {})
    with pytest.raises(OSError, match=re.escape(str(tmp_path / "run"))):
        save_report(tmp_path / "run", found(), choice, seconds=1, training_seconds=960)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"observations": 7}, "--observations is 7; a similarity needs from 8"),
        ({"warm_up": -1}, "--warm_up is -1"),
        ({"tasks": ["depth", "smell"]}, "'smell' is unknown; known are segmentation"),
        ({"tasks": ["depth", "depth"]}, "name each task once"),
        ({"tasks": []}, "name each task once"),
        ({"counts": [1, 2, 4]}, "4 numbers from 1 on that never fall"),
        ({"counts": [1, 2, 1, 4]}, "4 numbers from 1 on that never fall"),
        ({"counts": [0, 1, 2, 4]}, "4 numbers from 1 on that never fall"),
        ({"counts": [1, 2, 2, 4], "max_trainable": 3}, "both decide"),
        ({"max_multiply_adds": 0}, "the limit of 0 multiply-adds allows nothing"),
        ({"max_trainable": -5}, "the limit of -5 trainable parameters allows nothing"),
        ({"rate": 11}, "--rate is 11"),
    ],
)
def test_wrong_options_are_named(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        config(**options)


def test_heat_maps_use_the_whole_scale_of_colours_and_none_on_the_diagonal() -> None:
    png = heat_maps(found())
    assert png == heat_maps(found())
    with Image.open(io.BytesIO(png)) as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("RGB")).astype(int)
    viridis = colormaps["viridis"]
    wanted = {"least": viridis(0.0), "largest": viridis(1.0), "diagonal": (0xEC / 255,) * 3}
    share = {name: (abs(pixels - np.round(np.array(c[:3]) * 255)).max(-1) <= 1).mean() for name, c in wanted.items()}
    # Of 80 cells on about two thirds of the picture, 20 are on the diagonal and 10 are depth and normals.
    assert share["diagonal"] == pytest.approx(20 / 80 * 0.55, rel=0.2)
    assert share["largest"] == pytest.approx(10 / 80 * 0.55, rel=0.3)
    assert share["least"] > 0


@pytest.mark.parametrize("tasks", [("depth",), TASKS[:2], tuple("abcdefgh")])
def test_heat_maps_of_any_number_of_tasks(tasks: tuple[str, ...]) -> None:
    with Image.open(io.BytesIO(heat_maps(found(tasks), "weighted"))) as image:
        assert image.width > image.height > 300
