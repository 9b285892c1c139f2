"""The comparison of methods: its arithmetic, and that it goes on where it was stopped."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from benchmarks.delta import delta_m
from benchmarks.methods import Run, claims, comparison, rows, summary, with_costs
from benchmarks.methods_plot import draw_methods, front
from benchmarks.suites import SUITES, trees_of_shape
from ptsa_serve.task_tree import TaskTree
from training.methods import METHODS
from training.rules import RULES

KINDS = {"semseg": "classes", "parts": "classes", "sal": "probability", "normals": "unit_vectors"}
SINGLE = {"semseg": 67.21, "parts": 61.93, "sal": 62.35, "normals": 17.97}


@pytest.mark.parametrize(
    ("figures", "published"),
    [
        ((67.21, 61.93, 62.35, 17.97), 0.0),
        ((68.19, 58.99, 64.48, 17.03), 1.34),
        ((67.74, 59.46, 64.90, 16.59), 2.14),
        ((67.90, 59.84, 65.40, 16.60), 2.54),
        ((68.38, 59.58, 63.85, 16.76), 1.77),
    ],
)
def test_delta_m_is_the_published_one_of_mtloras_table(figures: tuple[float, ...], published: float) -> None:
    found = delta_m(KINDS, dict(zip(KINDS, figures, strict=True)), SINGLE)  # pyright: ignore[reportArgumentType]
    assert found == pytest.approx(published, abs=0.006)


def test_every_tree_of_a_shape_is_there_once() -> None:
    trees = list(trees_of_shape(("a", "b", "c", "d"), (1, 2, 2, 4)))
    assert len(trees) == len(set(map(str, trees))) == 7
    assert {tree.counts for tree in trees} == {(1, 2, 2, 4)}
    with pytest.raises(ValueError, match="only 1, 2 and 4 are enumerated"):
        list(trees_of_shape(("a", "b", "c", "d"), (1, 2, 3, 4)))


def test_the_tree_1_1_2_4_has_the_groups_that_similarity_found_in_its_third_stage() -> None:
    suite = SUITES["nyu-nano"]
    for found in trees_of_shape(suite.tasks, suite.counts):
        tree = next(arm.tree for arm in suite.arms(found) if arm.name == "ptsa, 1-1-2-4")
        assert tree is not None
        assert tree.counts == (1, 1, 2, 4)
        assert tree.stages[2] == found.stages[2]


def test_a_suite_trains_ptsa_with_no_more_parameters_than_mtlora() -> None:
    import torch

    from training.network.model import ModelConfig, PTSAModel

    for suite in (suite for suite in SUITES.values() if not suite.only):
        arms = {arm.name: arm for arm in suite.arms(next(trees_of_shape(suite.tasks, suite.counts)))}
        counts = {}
        for name in ("mtlora", "ptsa"):
            arm = arms[name]
            assert arm.tree is not None
            with torch.device("meta"):
                model = PTSAModel(ModelConfig(suite.fit["backbone"], arm.tree, arm.method, dict(arm.options)))
            counts[name] = sum(model.get_parameter(owned).numel() for owned in model.owners())
        assert 0.95 * counts["mtlora"] < counts["ptsa"] <= counts["mtlora"]


def run(arm: str, seed: int, depth: float, trainable: int = 100) -> Run:
    return Run(arm, arm, str(TaskTree.shared(("depth",))), seed, trainable, {"depth": depth}, 1.0)


def test_rows_and_claims_follow_the_figures() -> None:
    runs = [
        run("single_task", 0, 0.9, 400), run("single_task", 1, 1.1, 400), run("multi_task", 0, 1.2, 100),
        run("mtlora", 0, 1.0, 20), run("ptsa", 0, 0.8, 20), run("ptsa", 1, 0.9, 20), run("lora", 0, 0.7, 15),
        run("lora_per_task", 0, 1.0, 30), run("ptsa, 1-1-2-4", 0, 0.9), run("ptsa, tree 1", 0, 0.84),
        run("ptsa, tree 2", 0, 1.0),
    ]  # fmt: skip
    table = rows(runs)
    by_arm = {row["arm"]: row for row in table}
    assert by_arm["single_task"]["delta_m_percent"] == pytest.approx(0)
    assert by_arm["ptsa"]["delta_m_percent"] == pytest.approx(15)
    assert by_arm["ptsa"]["delta_m_sd"] == pytest.approx(7.071, abs=1e-3)
    assert by_arm["lora"]["delta_m_sd"] is None
    holds = {claim["claim"]: claim["holds"] for claim in claims(table)}
    assert list(holds.values()) == [True, True, True, True, False, True, False, True, True, True]
    assert (holds["1-1-2-4 is above all shared"], holds["1-1-2-4 is above all split"]) == (False, True)
    json.dumps([table, claims(table)], allow_nan=False)
    # Of a suite that is not done, what can be said.
    assert claims(rows(runs[:4])) == []
    assert len(claims(rows(runs[:6]))) == 4
    priced = [
        {**row, "deployed": 2e6, "giga_multiply_adds": 7.0, "ms": 150.0 if row["arm"] == "ptsa" else None}
        for row in table
    ]
    text = comparison(priced, ["depth"])
    assert "| ptsa | 0.00 | 2.00 | 7.00 | 150 | 0.850 | +15.00 ± 7.07 | 2 |" in text
    assert "| lora | 0.00 | 2.00 | 7.00 | – | 0.700 |" in text
    assert "yes: PTSA is above MTLoRA (20 against 0)" in text
    assert summary("x", runs).figures["ptsa_delta_m_percent"] == pytest.approx(15)


def test_what_has_a_result_is_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import benchmarks.methods

    suite = SUITES["nyu-nano"]
    found = next(trees_of_shape(suite.tasks, suite.counts))
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "tree.json").write_text(json.dumps(found.to_json()))
    trained: list[str] = []

    def train(suite, arm, seed, data, start, out: Path) -> Run:
        trained.append(out.name)
        if len(trained) == 5:
            raise KeyboardInterrupt
        return run(arm.name, seed, 1.0)

    monkeypatch.setattr(benchmarks.methods, "_train", train)
    where = {"data": {}, "start": tmp_path, "runs": tmp_path / "runs", "results": tmp_path / "results"}
    with pytest.raises(KeyboardInterrupt):
        benchmarks.methods.measure_methods(suite, **where)
    runs = benchmarks.methods.measure_methods(suite, **where)
    count = sum(len(arm.seeds) for arm in suite.arms(found))
    assert len(runs) == count
    # The one that was stopped is the only one that began twice.
    assert [name for name in set(trained) if trained.count(name) > 1] == [trained[4]]
    assert len(set(trained)) == count


def test_every_method_and_every_rule_has_an_arm() -> None:
    suite = SUITES["nyu-nano"]
    arms = suite.arms(next(trees_of_shape(suite.tasks, suite.counts)))
    assert {arm.method for arm in arms} == set(METHODS)
    assert {arm.rule for arm in arms} == set(RULES)


def test_arms_that_were_not_asked_for_are_not_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import benchmarks.methods

    suite = SUITES["nyu-nano"]
    (tmp_path / "tree.json").write_text(json.dumps(next(trees_of_shape(suite.tasks, suite.counts)).to_json()))
    monkeypatch.setattr(benchmarks.methods, "_train", lambda suite, arm, seed, *_: run(arm.name, seed, 1.0))
    where = {"data": {}, "start": tmp_path, "runs": tmp_path / "runs", "results": tmp_path}
    found = benchmarks.methods.measure_methods(suite, **where, only=["vmt", "ptsa, 1-1-2-4, adatask"])
    assert {run.arm for run in found} == {"vmt", "ptsa, 1-1-2-4, adatask"}
    assert len(benchmarks.methods.measure_methods(suite, **where, only=["lora"])) == 3
    with pytest.raises(ValueError, match="--only names vmt_lit, which this suite has not; it has single_task; multi"):
        benchmarks.methods.measure_methods(suite, **where, only=["vmt_lit", "lora"])


def test_arms_cost_what_their_models_do() -> None:
    suite = SUITES["nyu-nano"]
    tree = next(trees_of_shape(suite.tasks, suite.counts))
    table = [{"arm": name, "trainable": 1} for name in ("ptsa", "multi_task", "vmt", "ptsa, 1-1-2-4")]
    found = {row["arm"]: row for row in with_costs(table, suite, tree, None, threads=1, rounds=1)}
    assert list(found) == [row["arm"] for row in table]
    assert found["multi_task"]["deployed"] < found["vmt"]["deployed"] < found["ptsa, 1-1-2-4"]["deployed"]
    assert found["ptsa, 1-1-2-4"]["giga_multiply_adds"] < found["ptsa"]["giga_multiply_adds"]
    assert found["ptsa"]["ms"] is None


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1))
def test_on_the_front_is_what_nothing_beats(points: list[tuple[int, int]]) -> None:
    costs, gains = zip(*points, strict=True)
    line = front(costs, gains)
    for index, (cost, gain) in enumerate(points):
        beaten = any(c <= cost and g >= gain and (c, g) != (cost, gain) for c, g in points)
        assert index not in line or not beaten
        assert beaten or points[index] in [points[i] for i in line]


def test_the_picture_is_of_gains_against_costs() -> None:
    row = {"arm": "ptsa", "trainable": 2e6, "giga_multiply_adds": 11.0, "ms": None, "delta_m_percent": 1.0}
    picture = Image.open(io.BytesIO(draw_methods([row, {**row, "arm": "vmt", "trainable": 9e7}])))
    assert picture.format == "PNG"
    assert np.asarray(picture.convert("L")).std() > 5
