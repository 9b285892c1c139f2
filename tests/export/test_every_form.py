"""Every combination of branches, precision and shape is exported, passes its gate, and is served by every engine."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.forms import FormsConfig, forms_table, measure_forms
from benchmarks.measurement import Measurement
from ptsa_serve.artifact import Artifact
from ptsa_serve.engines import ENGINES, EngineOptions, load_engine
from ptsa_serve.selection import candidates

pytestmark = pytest.mark.slow  # minutes: 4 exports, 16 forms, as many plans

SIZE = (96, 128)
BRANCHES, SHAPES = ("folded", "low_rank"), ("fixed", "dynamic")


@pytest.fixture(scope="module")
def config(checkpoint: Path, photo: Path, tmp_path_factory: pytest.TempPathFactory) -> FormsConfig:
    root = tmp_path_factory.mktemp("data") / "nyu"
    rng = np.random.default_rng(0)
    for split, number in product(("train", "val"), range(2)):
        for folder in ("image", "depth"):
            (root / split / folder).mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (*SIZE, 3), np.uint8)).save(root / split / "image" / f"{number}.jpg")
        depth = Image.fromarray(rng.integers(1000, 4000, SIZE).astype(np.uint16))
        depth.save(root / split / "depth" / f"{number}.png")
    work = tmp_path_factory.mktemp("forms")
    return FormsConfig(checkpoint, photo, {"nyu": root}, [root / "train"], work, SIZE, 0, threads=1, rounds=1)


@pytest.fixture(scope="module")
def measured(config: FormsConfig) -> Measurement:
    return measure_forms(config)


@pytest.fixture(scope="module")
def artifacts(config: FormsConfig, measured: Measurement) -> dict[str, Artifact]:
    return {shape: Artifact.open(config.work / shape / "int8") for shape in SHAPES}


def able(artifact: Artifact) -> set[str | None]:
    return {options.precision for _, options in candidates(artifact, EngineOptions())}


def test_every_form_that_an_engine_computes_is_there(measured: Measurement, artifacts: dict[str, Artifact]) -> None:
    there = [precision for precision in ("fp32", "fp16", "bf16", "int8") if precision in able(artifacts["fixed"])]
    assert {"fp32", "fp16", "int8"} <= set(there)
    assert set(measured.figures) == {" ".join(form) for form in product(BRANCHES, there, SHAPES)}


def test_every_engine_that_offers_a_form_reproduces_the_sample(
    measured: Measurement, artifacts: dict[str, Artifact]
) -> None:
    for shape, artifact in artifacts.items():
        offered = candidates(artifact, EngineOptions(1))
        assert {options.branches for _, options in offered} == set(BRANCHES)
        for name, options in offered:
            found = measured.figures[f"{options.branches} {options.precision} {shape}"][name]
            assert isinstance(found, float), (name, options, found)


def test_each_lower_precision_has_passed_its_gate(measured: Measurement) -> None:
    for form, row in measured.figures.items():
        assert (row["lost"] is None) == (" fp32 " in form)
        assert row["lost"] is None or row["lost"] <= (0.02 if " int8 " in form else 0.01)


def test_plans_are_built_of_every_form(measured: Measurement) -> None:
    pytest.importorskip("tensorrt_rtx", reason="pip install 'ptsa-serve[tensorrt-rtx]'")
    for form, row in measured.figures.items():
        assert isinstance(row["tensorrt_rtx"], dict), (form, row["tensorrt_rtx"])
        assert row["tensorrt_rtx"]["mb"] > 0


@pytest.mark.parametrize("count", [1, 3])
def test_a_graph_of_any_size_gives_the_maps_of_a_fixed_one_in_every_form(
    artifacts: dict[str, Artifact], count: int
) -> None:
    photos = np.random.default_rng(count).integers(0, 256, (count, *SIZE, 3), dtype=np.uint8)
    for name, options in candidates(artifacts["fixed"], EngineOptions(1)):
        maps = {}
        for shape, artifact in artifacts.items():
            engine = load_engine(name, artifact, options)
            maps[shape] = engine.run(photos)
            engine.close()
        bound = 1e-4 if options.precision == "fp32" else 0.05
        for task in ("depth", "normals", "saliency"):
            apart = np.abs(maps["fixed"][task] - maps["dynamic"][task]).mean()
            assert apart <= bound, (name, options, task)


def test_a_second_run_makes_nothing_again(config: FormsConfig, measured: Measurement) -> None:
    before = {path: path.stat().st_mtime_ns for path in config.work.rglob("*")}
    again = measure_forms(config)
    assert set(again.figures) == set(measured.figures)
    kept = {path: time for path, time in before.items() if path != config.work}
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_the_table_has_a_row_a_form(measured: Measurement) -> None:
    lines = forms_table(measured).splitlines()
    assert len(lines) == 2 + len(measured.figures)
    assert {line.count("|") for line in lines} == {lines[0].count("|")}
    for name in ("onnxruntime", "openvino"):
        assert (f"{name}, ms" in lines[0]) == bool(ENGINES[name].version())
