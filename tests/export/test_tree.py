"""A tree within milliseconds of this machine, from a search that is done: real graphs of a tiny network."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

import export.tree
from export.__main__ import main
from export.latency import compiled
from ptsa_serve.task_tree import TaskTree
from training.network.checkpoint import save_checkpoint
from training.network.model import ModelConfig, PTSAModel
from training.similarity.measures import MEASURES
from training.similarity.record import Similarity, Skipped, write_similarity

TASKS = ("depth", "saliency")


@pytest.fixture
def search(tmp_path: Path) -> Path:
    """What a search of two tasks leaves."""
    config = ModelConfig("swin_export_test", TaskTree.shared(TASKS), "decoders", width=8)
    (tmp_path / "decoders").mkdir()
    save_checkpoint(PTSAModel(config), tmp_path / "decoders" / "model.safetensors", info={})
    alike = np.tile(np.array([[1.0, 0.2], [0.2, 1.0]]), (5, 1, 1))
    same = dict.fromkeys(MEASURES, alike)
    count = np.full((5, 2, 2), 8)
    skipped = {task: Skipped() for task in TASKS}
    write_similarity(tmp_path / "similarity.json", Similarity(TASKS, same, same, count, skipped, 8, 1.0))
    return tmp_path


def run(search: Path, *options: str) -> tuple[int, str]:
    found = CliRunner().invoke(main, ["tree", str(search), "--size", "64x64", *options])
    return found.exit_code, found.output


def test_a_limit_in_milliseconds_is_kept_and_measured_once(search: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock is ours: five milliseconds a group."""
    seen: list[tuple[int, ...]] = []

    def counted(config: ModelConfig, size: tuple[int, int], folder: Path) -> None:
        seen.append(config.tree.counts)

    monkeypatch.setattr(export.tree, "compiled", counted)
    monkeypatch.setattr(export.tree, "milliseconds", lambda artifact, size, threads: 5.0 * sum(seen[-1]))
    code, output = run(search, "--max-ms", "27")
    assert code == 0, output
    assert "ms: 25" in output
    assert TaskTree.from_json(json.loads((search / "tree.json").read_text())).counts == (1, 1, 1, 2)
    before = list(seen)
    assert run(search, "--max-ms", "27")[0] == 0
    assert seen == before
    code, output = run(search, "--max-ms", "19")
    assert code == 1
    assert "no tree is within the budget: one group at every stage, the smallest, costs 20 ms" in output


@pytest.mark.slow
def test_the_engine_is_timed_on_graphs_whose_groups_differ(tmp_path: Path) -> None:
    tree = TaskTree.parse("depth,saliency / depth,saliency / depth,saliency / depth | saliency")
    config = ModelConfig("swin_export_test", tree, width=8)
    artifact = compiled(config, (64, 64), tmp_path / "graphs")
    assert export.tree.milliseconds(artifact, (64, 64), threads=1) > 0
    nodes = onnx.load(artifact.folder / artifact.variants.all[0].path, load_external_data=False).graph.node
    assert sum(node.op_type == "Softmax" for node in nodes) == 6
    assert compiled(config, (64, 64), tmp_path / "graphs").manifest == artifact.manifest


def test_without_a_limit_nothing_is_chosen(search: Path) -> None:
    code, output = run(search)
    assert code == 1
    assert "nothing limits the tree; give --max-ms, --max-multiply-adds or --max-trainable" in output
