"""The search for a tree as a user runs it: from a backbone and photos to a tree, and a training that takes it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import save_file

from training.backbones import build_backbone
from training.data.opening import open_set
from training.errors import ConfigError, ResumeError
from training.fit import FitConfig, fit
from training.network.checkpoint import load_checkpoint
from training.similarity import search
from training.similarity.config import SimilarityConfig
from training.similarity.search import find_tree, read_tree


@pytest.fixture
def config(data: dict[str, Path], tmp_path: Path) -> SimilarityConfig:
    start = tmp_path / "backbone.safetensors"
    save_file(build_backbone("swin_test").trunk.state_dict(), start)
    return SimilarityConfig(
        data=data, out=tmp_path / "search", start=start, backbone="swin_test", width=8,
        batches={"nyu": 1, "ccp": 1}, warm_up=2, observations=8, scale=1 / 6, workers=0, rank=2,
    )  # fmt: skip


def test_a_search_leaves_figures_pictures_and_a_tree(config: SimilarityConfig) -> None:
    text = find_tree(config)
    tree = read_tree(config.out / "tree.json")
    assert set(tree.tasks) == {"segmentation", "depth", "normals", "saliency"}
    assert tree.counts == (1, 2, 2, 4)
    assert f"tree: {tree}" in text
    assert "s of training that follow" in text
    for name in ("similarity.png", "tree.png"):
        assert (config.out / name).read_bytes().startswith(b"\x89PNG")
    found = json.loads((config.out / "similarity.json").read_text())
    assert found["tasks"] == list(tree.tasks)
    assert found["warm_up_seconds"] > 0
    assert found["settings"]["observations"] == 8
    assert found["settings"]["decoders"]["steps"] == 2


@pytest.mark.usefixtures("unpainted")
def test_a_measurement_is_used_again_until_something_it_depends_on_changes(
    config: SimilarityConfig, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(search, "open_set", lambda *words: opened.append(words[0]) or open_set(*words))
    find_tree(config)
    assert opened == ["nyu", "ccp"]
    path = config.out / "similarity.json"
    before = path.read_bytes()
    # Another question is answered from it.
    find_tree(replace(config, counts=[1, 1, 2, 4], measure="weighted", training_steps=2000))
    assert read_tree(config.out / "tree.json").counts == (1, 1, 2, 4)
    assert path.read_bytes() == before
    capsys.readouterr()
    find_tree(replace(config, observations=9))
    assert "measured with other settings, so again (observations was 8, now 9)" in capsys.readouterr().err
    found = json.loads(path.read_text())
    assert found["batches"] == 9
    assert found["warm_up_seconds"] == json.loads(before)["warm_up_seconds"]  # it was not done again
    # The decoders are another training's then, which says so.
    with pytest.raises(ResumeError, match="steps was 2, now 3"):
        find_tree(replace(config, warm_up=3))
    # An older version did not say what its figures depend on.
    del found["settings"], found["warm_up_seconds"]
    path.write_text(json.dumps(found))
    find_tree(config)
    assert json.loads(path.read_text())["batches"] == 8


@pytest.mark.usefixtures("unpainted")
def test_a_budget_is_kept(config: SimilarityConfig) -> None:
    text = find_tree(replace(config, max_trainable=10**9))
    assert read_tree(config.out / "tree.json").counts == (1, 4, 4, 4)
    costs = [int(line.split(": ")[1].replace(",", "")) for line in text.splitlines() if line.startswith("trainable")]
    find_tree(replace(config, max_trainable=costs[0] - 1))
    assert read_tree(config.out / "tree.json").counts < (1, 4, 4, 4)
    with pytest.raises(ConfigError, match=r"no tree is within the budget: .* trainable parameters, allowed are 5"):
        find_tree(replace(config, max_trainable=5))


def test_training_takes_the_tree_that_is_found(config: SimilarityConfig, fit_config: FitConfig) -> None:
    run = replace(fit_config, method="ptsa", rank=2, start=config.start, tree="auto", steps=2)
    model = load_checkpoint(fit(run))
    found = read_tree(run.out / "similarity" / "tree.json")
    assert model.config.tree == found
    assert fit(run).exists()  # finished: nothing is searched or trained again
    again = replace(run, tree=str(run.out / "similarity" / "tree.json"), out=run.out / "again")
    assert load_checkpoint(fit(again)).config.tree == found


def test_a_search_without_a_backbone_or_of_another_file_is_refused(fit_config: FitConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--tree auto compares gradients on a backbone"):
        replace(fit_config, tree="auto")
    (tmp_path / "odd.json").write_text("[1]")
    with pytest.raises(ConfigError, match=r"odd\.json holds no tree"):
        fit(replace(fit_config, tree=str(tmp_path / "odd.json")))
