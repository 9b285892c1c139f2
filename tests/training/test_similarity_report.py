import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib import colormaps
from PIL import Image

from ptsa_serve.task_tree import TaskTree
from training.allocation.counts import from_counts
from training.errors import ConfigError
from training.fit_config import FitConfig, resolved
from training.similarity.config import DEAR, SimilarityConfig, affordable
from training.similarity.measures import MEASURES
from training.similarity.picture import heat_maps
from training.similarity.record import Similarity, Skipped
from training.similarity.report import choose_tree, save_report
from training.similarity.search import search_of

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
    chosen = config(out=tmp_path / "run", warm_up=50, training_steps=640)
    text = save_report(replace(found(), warm_up_seconds=5), choice, chosen, 1.5)
    files = {path.name: path for path in (tmp_path / "run").iterdir()}
    assert set(files) == {"similarity.png", "tree.json", "tree.png", "tree.txt"}
    assert TaskTree.from_json(json.loads(files["tree.json"].read_text())) == choice.tree
    assert files["tree.txt"].read_text(encoding="utf-8") == text + "\n"
    assert f"tree: {choice.tree}" in text
    assert "multiply-adds: 9" in text
    assert "found in 18 s: 50 steps of warm-up in 5 s, 64 batches compared in 12 s" in text
    assert "that is 1.8% of the 960 s of training that follow: 640 steps of 1.5 s" in text
    assert "warning" not in text
    for name in ("similarity.png", "tree.png"):
        with Image.open(files[name]) as image:
            image.verify()


@pytest.mark.usefixtures("unpainted")
def test_a_dear_measurement_and_an_uncertain_tree_are_warned_of(tmp_path: Path) -> None:
    unsure = found(error=0.5)
    text = save_report(unsure, choose_tree(unsure, config(), {}), config(out=tmp_path), 0.2)
    assert "warning: more than 5%; fewer --observations" in text
    assert "warning: the tree is not certain" in text


@pytest.mark.usefixtures("unpainted")
def test_a_folder_that_cannot_be_written_is_an_oserror_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    choice = choose_tree(found(), config(), {})
    with pytest.raises(OSError, match=re.escape(str(tmp_path / "run"))):
        save_report(found(), choice, config(out=tmp_path / "run"), 1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"observations": 7}, "--observations is 7; a similarity needs from 8"),
        ({"warm_up": 0}, "--warm_up is 0"),
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


def spent(config: SimilarityConfig, tasks: int) -> float:
    """The search's share of the training in photos, each at the most that it costs (`training.similarity.config`)."""
    assert config.warm_up is not None
    assert config.observations is not None
    photos = sum(config.batches.values()) * (0.5 * config.warm_up + tasks * config.observations)
    return photos / (config.training_steps * config.training_photos)


@pytest.mark.parametrize("tasks", [2, 4, 6])
@pytest.mark.parametrize("steps", [250, 1000, 46_800])
def test_what_is_left_out_is_as_much_as_a_twentieth_of_the_training_pays_for(steps: int, tasks: int) -> None:
    # A quarter of the training's batch, as before a training with `--tree auto`.
    chosen = affordable(config(batches={"nyu": 4}, training_steps=steps, training_photos=16), tasks)
    assert chosen.warm_up is not None
    assert 10 <= chosen.warm_up <= 100
    if steps > 250 or tasks <= 4:
        assert spent(chosen, tasks) <= DEAR
    if steps > 1000:
        assert (chosen.warm_up, chosen.observations) == (100, 32)


def test_what_is_asked_for_is_done_and_a_short_training_gets_the_least() -> None:
    asked = affordable(config(warm_up=500, observations=9, training_steps=10), 4)
    assert (asked.warm_up, asked.observations) == (500, 9)
    # Many observations leave less for the warm-up.
    few, many = (affordable(config(observations=number, training_steps=800), 4) for number in (10, 35))
    assert (few.warm_up, many.warm_up) == (100, 40)
    short = affordable(config(training_steps=10), 4)
    assert (short.warm_up, short.observations) == (10, 8)
    assert spent(affordable(config(), 4), 4) <= DEAR
    # Of the default batches those of data sets that are there.
    assert short.batches == {"nyu": 4}


@pytest.mark.parametrize(
    ("options", "steps", "photos", "batches"),
    [
        ({"batches": {"nyu": 8}}, 1000, 8, {"nyu": 2}),
        ({"batch_each": 32, "epochs": 300, "accumulate": 2}, 300 * 12, 64, {"nyu": 8}),
        ({"batches": {"nyu": 2}, "side": 448, "scale": 0.5}, 1000, 2, {"nyu": 1}),
    ],
)
def test_the_search_before_a_training_knows_its_steps_and_photos(
    options: dict, steps: int, photos: int, batches: dict[str, int]
) -> None:
    run = FitConfig(data={"nyu": Path("nyu")}, out=Path("run"), start=Path("x"), tree="auto", **options)
    search = search_of(resolved(run, {"nyu": 795}), Path("search"))
    assert (search.training_steps, search.training_photos, search.batches) == (steps, photos, batches)
    assert (search.side, search.scale) == (run.side, run.scale)
    assert (search.warm_up, search.observations) == (None, None)
    assert spent(affordable(search, 4), 4) <= DEAR


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
