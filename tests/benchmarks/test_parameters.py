"""Costs of methods: one graph for models that differ in values alone, and none for others."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks.__main__ import main
from benchmarks.parameters import beside_published, cases, measure_parameters, parameters_table
from benchmarks.parameters_graphs import graph_key
from benchmarks.parameters_plot import draw_parameters
from export.fold import fold
from export.latency import compiled, random_model
from ptsa_serve.artifact import Artifact
from training.accounting.account import account
from training.backbones.swin import SWINS
from training.methods import METHODS

SIZE = (32, 32)


@pytest.fixture(autouse=True)
def small_swin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SWINS, "swin_test", {"embed_dim": 12, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 2, 3)})


def measure(methods: list[str], graphs: Path | None = None, **options: Any):
    arguments = {"size": SIZE, "decoder": "pyramid", "rank": 2, "threads": 1, "rounds": 1} | options
    return measure_parameters(["swin_test"], methods, graphs=graphs, **arguments)


def test_every_method_is_counted_and_ptsa_with_every_tree() -> None:
    measured = measure(list(METHODS))
    rows = measured.figures["swin_test"]
    trees = [f"ptsa {tree}" for tree in ("1-1-1-1", "1-1-2-4", "1-2-2-4", "4-4-4-4")]
    assert set(rows) == {*(name for name in METHODS if name != "ptsa"), *trees}
    models = cases("swin_test", list(METHODS), decoder="pyramid", rank=2)
    assert list(models) == list(rows)
    for label in ("mtlora", "ptsa 1-1-2-4"):
        costs = account(models[label], SIZE)
        assert (rows[label]["trainable"], rows[label]["folded"]) == (costs.trainable, costs.folded)
        assert rows[label]["folded_MB"] == 4 * costs.folded / 1e6
    text = parameters_table(measured)
    assert all(f"\n{label} " in text for label in rows)
    assert beside_published(measured) == ""


def test_graphs_are_shared_by_models_that_differ_in_values_alone() -> None:
    models = cases("swin_test", list(METHODS), decoder="pyramid", rank=2)
    keys = {label: graph_key(config, SIZE) for label, config in models.items()}
    same: dict[str, list[str]] = {}
    for label, key in keys.items():
        same.setdefault(key, []).append(label)
    assert list(same.values()) == [
        ["single_task"],
        ["multi_task", "decoders", "bitfit", "lora", "ptsa 1-1-1-1", "palora", "pareto", "tinting"],
        ["lora_per_task", "mtl_lora", "tora", "ptsa 4-4-4-4", "taps"],
        ["mtlora"],
        ["dora", "ditask", "sinewich"],
        ["ptsa 1-1-2-4"],
        ["ptsa 1-2-2-4"],
        ["polyhistor", "polyhistor_lite"],
        ["vmt", "vmt_lite"],
        ["adapt_finetune"],
        ["lv_adapter"],
        ["ct_moa"],
        ["tadformer"],
        ["rcm"],
    ]
    other = cases("swin_test", ["mtlora"], decoder="pyramid", rank=3)["mtlora"]
    assert graph_key(other, SIZE) != keys["mtlora"]  # its factors stay
    assert graph_key(models["lora"], (32, 64)) != keys["lora"]


@pytest.mark.parametrize("method", METHODS)
def test_random_weights_make_no_two_groups_equal(method: str) -> None:
    """Equal ones would be compiled as one, and cost too little."""
    for config in cases("swin_test", [method], decoder="pyramid", rank=2).values():
        model = random_model(config)
        folded = fold(model).network
        assert sum(p.numel() for p in folded.slots.parameters()) > 0
        nodes = {name: len(found) for name, found in folded.plan.items()}
        # Where decoders read; what all tasks read there is one.
        last = nodes["layers.3.after_tap"]
        teeth = 4 if model.method.layout.teeth and method != "adapt_finetune" else 0
        assert last == config.tree.counts[-1] + (teeth or (method == "adapt_finetune")), (method, nodes)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory):
    """One graph, made and timed; and the folder that it is in."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SWINS, "swin_test", {"embed_dim": 12, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 2, 3)})
        graphs = tmp_path_factory.mktemp("graphs")
        return measure(["decoders", "lora"], graphs), graphs


def test_a_graph_is_made_once_and_kept(measured, monkeypatch: pytest.MonkeyPatch) -> None:
    first, graphs = measured
    rows = first.figures["swin_test"]
    assert rows["decoders"]["graph"] == rows["lora"]["graph"] == "decoders"
    assert rows["decoders"]["ms"] == rows["lora"]["ms"] > 0
    assert "that of decoders" in parameters_table(first)
    (folder,) = graphs.iterdir()
    artifact = Artifact.open(folder)
    assert artifact.manifest.counts.deployed == rows["decoders"]["folded"]
    assert artifact.manifest.counts.multiply_adds["32x32"] / 1e9 == rows["decoders"]["giga_multiply_adds"]
    monkeypatch.setattr("export.latency.build_graph", None)  # would fail
    again = measure(["lora"], graphs).figures["swin_test"]["lora"]
    assert again["ms"] > 0
    config = cases("swin_test", ["lora"], decoder="pyramid", rank=2)["lora"]
    (folder / "weights.safetensors").write_bytes(b"damaged")
    with pytest.raises(TypeError):  # it is made again
        compiled(config, SIZE, folder)


def test_the_picture_shows_what_was_measured(measured) -> None:
    first, _ = measured
    png = draw_parameters(first.figures, first.conditions)
    assert png == draw_parameters(first.figures, first.conditions)
    assert png.startswith(b"\x89PNG")
    rows = {label: {**row, "ms": 3 * row["ms"]} for label, row in first.figures["swin_test"].items()}
    assert png != draw_parameters({"swin_test": rows}, first.conditions)


def test_the_command_writes_a_measurement(tmp_path: Path) -> None:
    command = ["parameters", "--out", str(tmp_path), "--backbones", "swin_test", "--size", "32", "--without-latency"]
    command += ["--methods", "decoders"]
    done = CliRunner().invoke(main, command, catch_exceptions=False)
    assert "decoders" in done.output
    assert json.loads((tmp_path / "parameters.json").read_text())["conditions"]["weights"] == "random"
    assert [path.name for path in tmp_path.iterdir()] == ["parameters.json"]
    for wrong in (["--methods", "vpt"], ["--backbones", "vit"], ["--size", "33"]):
        assert CliRunner().invoke(main, [*command, *wrong]).exit_code != 0
    (tmp_path / "parameters.json").write_text('{"mine": 1}')
    assert CliRunner().invoke(main, command).exit_code == 2
    assert (tmp_path / "parameters.json").read_text() == '{"mine": 1}'
