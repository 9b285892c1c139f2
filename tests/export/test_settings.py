"""What a method leaves to be chosen is chosen at export, and known to whoever holds the artifact against it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from export.__main__ import main
from export.errors import ExportError
from export.options import parse_settings
from ptsa_serve.artifact import Artifact
from ptsa_serve.engines import EngineOptions, load_engine
from ptsa_serve.predictor import Predictor
from ptsa_serve.task_tree import TaskTree
from training.backbones.swin import SWINS
from training.network.checkpoint import save_checkpoint
from training.network.model import ModelConfig, PTSAModel


def test_settings_are_written_as_yaml() -> None:
    assert parse_settings(["preference={depth: 2, normals: 0.5}", "other=3"]) == {
        "preference": {"depth": 2, "normals": 0.5},
        "other": 3,
    }


@pytest.mark.parametrize(
    ("texts", "message"),
    [(["preference"], "write each setting once, as NAME=VALUE"), (["a=1", "a=2"], "once"), (["a={b"], "is no YAML")],
)
def test_settings_that_are_none_are_refused(texts: list[str], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        parse_settings(texts)


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [*map(str, arguments)])


@pytest.fixture
def front(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A checkpoint of two members that differ."""
    monkeypatch.setitem(SWINS, "swin_front_test", {"embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2)})
    torch.manual_seed(0)
    tree = TaskTree.shared(("depth", "saliency"))
    model = PTSAModel(ModelConfig("swin_front_test", tree, "palora", {"rank": 2}, width=8)).eval()
    with torch.no_grad():
        for parameter in model.method.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    save_checkpoint(model, tmp_path / "front.safetensors", info={})
    return tmp_path / "front.safetensors"


def test_a_setting_that_the_method_does_not_have_is_one_line(front: Path, photo: Path, tmp_path: Path) -> None:
    for setting, message in (("rank=3", "'rank' of a trained palora cannot be set"), ("preference={x: 1}", "names x")):
        done = _run("compile", front, tmp_path / "out", "--sample", photo, "--photos", photo, "--set", setting)
        assert done.exit_code == 1
        assert message in done.output
        assert "Traceback" not in done.output


@pytest.mark.slow  # graphs of two points
def test_corners_of_a_front_are_artifacts_that_verify_and_differ(front: Path, photo: Path, tmp_path: Path) -> None:
    maps = {}
    for task in ("depth", "saliency"):
        where = tmp_path / task
        common = ("--sample", photo, "--photos", photo, "--sizes", "64x96")
        done = _run("compile", front, where, *common, "--set", f"preference={{{task}: 1}}")
        assert done.exit_code == 0, done.output
        artifact = Artifact.open(where)
        assert artifact.manifest.provenance["settings"] == {"preference": {task: 1}}
        assert _run("verify", front, where, "--photos", photo).exit_code == 0
        engine = load_engine("onnxruntime", artifact, EngineOptions(threads=1))
        maps[task] = Predictor(artifact, engine).predict(photo.read_bytes()).maps["depth"]
        engine.close()
    assert not np.allclose(maps["depth"], maps["saliency"], atol=1e-3)
