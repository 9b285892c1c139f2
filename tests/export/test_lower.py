"""Graphs of lower precision are added to an artifact if no metric loses too much, and else nothing is written."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.numpy import load_file

from export import lower
from export.__main__ import main
from export.errors import AccuracyError, ExportError
from export.lower import LowerConfig, lower_artifact
from export.precision.gate import ALLOWED, Loss, check, losses
from ptsa_serve.artifact import Artifact
from ptsa_serve.engines import ENGINES, EngineOptions, load_engine
from ptsa_serve.predictor import Predictor
from ptsa_serve.selection import candidates
from ptsa_serve.tasks import TASKS
from ptsa_serve.variants import Precision
from training.scoring.metrics import Figures

COUNT = 4
Figured = dict[str, dict[str, Figures]]


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.fixture(scope="module")
def nyu(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos of noise, each 1 to 4 m deep."""
    root = tmp_path_factory.mktemp("data") / "nyu"
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for number in range(COUNT):
            save(root / split / "image" / f"{number}.jpg", rng.integers(0, 255, (48, 64, 3), np.uint8))
            save(root / split / "depth" / f"{number}.png", rng.integers(1000, 4000, (48, 64)).astype(np.uint16))
    return root


@pytest.fixture
def config(tiny_artifact: Path, nyu: Path, tmp_path: Path) -> Callable[..., LowerConfig]:
    def make(*precisions: Precision, **changes) -> LowerConfig:
        fields = {"data": {"nyu": nyu}, "photos": [nyu / "train"], "calibration_count": COUNT, **changes}
        return LowerConfig(tiny_artifact, tmp_path / "out", precisions, **fields)

    return make


@pytest.fixture(scope="module")
def lowered(tiny_artifact: Path, nyu: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    out = tmp_path_factory.mktemp("lowered") / "out"
    photos = [nyu / "train"]
    return lower_artifact(LowerConfig(tiny_artifact, out, ("fp16", "int8"), {"nyu": nyu}, photos=photos))


def test_every_form_is_there_at_every_size_and_reproduces_the_sample(lowered: Artifact):
    artifact = Artifact.open(lowered.folder)
    sizes = set(artifact.manifest.input.sizes)
    for precision in ("fp32", "fp16", "int8"):
        assert set(artifact.variants.sizes(artifact.variants.form(precision))) == sizes
        options = EngineOptions(threads=1, precision=precision)
        found = candidates(artifact, options)
        assert found
        for name, options in found:
            engine = load_engine(name, artifact, options)
            assert engine.precision == precision
            assert Predictor(artifact, engine).verify()
            engine.close()


def test_what_was_there_stays_to_the_byte_and_halves_are_no_second_copy(lowered: Artifact, tiny_artifact: Path):
    for path in tiny_artifact.iterdir():
        if path.name != "manifest.json":
            assert (lowered.folder / path.name).read_bytes() == path.read_bytes()
    assert load_file(lowered.folder / "weights-fp16.safetensors") == {}
    assert all(key.endswith("_scale") for key in load_file(lowered.folder / "weights-int8.safetensors"))
    assert Artifact.open(lowered.folder).manifest.variants().all[0].weights == "weights.safetensors"


def test_weights_of_8_bits_are_counted_from_those_that_are_there(lowered: Artifact):
    variants = [variant for variant in lowered.variants.all if variant.form.precision == "int8"]
    names = [name for name in lowered.graph(variants[0]).weights if name.endswith("_quantized")]
    made = lowered.weights(variants[0]).make(names)
    assert len(names) == 2 + len(TASKS)
    assert {array.dtype for array in made.values()} == {np.dtype(np.int8)}
    assert all(np.abs(array).max() == 127 for array in made.values())


def test_an_unpacked_artifact_runs_in_every_precision_without_this_package(lowered: Artifact, tmp_path: Path):
    lowered.write_external_data(tmp_path / "plain")
    batch = np.random.default_rng(1).integers(0, 256, (2, 48, 64, 3), dtype=np.uint8)
    for precision in ("fp16", "int8"):
        engine = load_engine("onnxruntime", lowered, EngineOptions(threads=1, precision=precision))
        session: Any = onnxruntime.InferenceSession(tmp_path / "plain" / f"model-48x64-{precision}.onnx")
        maps = dict(zip(TASKS, session.run(list(TASKS), {"image": batch}), strict=True))
        for name, values in engine.run(batch).items():
            assert np.allclose(values, maps[name], atol=1e-3)


def test_the_manifest_says_what_was_lost(lowered: Artifact):
    said = Artifact.open(lowered.folder).manifest.provenance["precisions"]
    for precision in ("fp16", "int8"):
        (entry,) = said[precision]["losses"]["folded"]
        assert (entry["data"], entry["task"], entry["figure"]) == ("nyu", "depth", "RMSE_m")
        assert entry["lost"] <= ALLOWED[precision]
        assert said[precision]["photos"] == {"nyu": COUNT}
    assert said["int8"]["left_out"] == []
    assert said["int8"]["calibration_photos"] == COUNT


def test_bf16_is_measured_where_an_engine_runs_it(config, lowered: Artifact):
    able = {options.precision for row in ENGINES.values() for options in row.offers(lowered)}
    if "bf16" not in able:
        pytest.skip("no engine that is installed computes bf16 on this CPU")
    made = lower_artifact(config("bf16"))
    options = EngineOptions(threads=1, precision="bf16")
    assert [name for name, _ in candidates(made, options)] == ["openvino"]


def test_what_no_engine_runs_is_not_written(config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ptsa_serve.selection.ENGINES", {"onnxruntime": ENGINES["onnxruntime"]})
    with pytest.raises(AccuracyError, match="no engine that is installed here runs bf16 folded: install one"):
        lower_artifact(config("bf16"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_loss_beyond_what_is_allowed_writes_nothing(
    config, precision: Precision, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(ALLOWED, precision, -0.5)
    with pytest.raises(AccuracyError, match=rf"{precision} loses more .*depth on nyu: RMSE_m \d.*no artifact"):
        lower_artifact(config(precision))
    assert not list(tmp_path.iterdir())


def test_layers_that_maps_suffer_most_from_are_left_out_until_the_gate_is_passed(
    config, monkeypatch: pytest.MonkeyPatch
):
    calls = []

    def strict(precision: str, found: list[Loss]) -> None:
        calls.append(precision)
        if len(calls) < 3:
            raise AccuracyError("too much")

    monkeypatch.setattr(lower, "check", strict)
    artifact = lower_artifact(config("int8"))
    left_out = artifact.manifest.provenance["precisions"]["int8"]["left_out"]
    assert len(left_out) == 2
    variant = next(variant for variant in artifact.variants.all if variant.form.precision == "int8")
    weights = artifact.graph(variant).weights
    for layer in ("stem", "trunk", *(f"head.{task}" for task in TASKS)):
        assert (f"{layer}_quantized" in weights) == (layer not in left_out), layer


@pytest.mark.parametrize(
    ("precisions", "changes", "message"),
    [
        (["fp16", "fp16"], {}, "ask once"),
        (["fp16"], {"data": {}}, "--data NAME=DIR"),
        (["int8"], {"photos": []}, "give --photos"),
        (["int8"], {"photos": ["empty"]}, "no JPEG below"),
    ],
)
def test_what_cannot_be_used_is_refused_before_any_work(
    config, precisions: list[str], changes: dict, message: str, tmp_path: Path
):
    (tmp_path / "empty").mkdir()
    if changes.get("photos"):
        changes = {"photos": [tmp_path / "empty"]}
    with pytest.raises((ExportError, FileNotFoundError), match=message):
        lower_artifact(config(*precisions, **changes))
    assert not (tmp_path / "out").exists()


def test_a_precision_that_is_there_is_not_made_again(lowered: Artifact, nyu: Path, tmp_path: Path):
    with pytest.raises(ExportError, match="has fp16, fp32, int8 graphs"):
        lower_artifact(LowerConfig(lowered.folder, tmp_path / "out", ("fp16",), {"nyu": nyu}))


def invoke(*arguments: object) -> Result:
    result = CliRunner().invoke(main, ["lower", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_the_command_writes_the_artifact_and_prints_what_was_lost(tiny_artifact: Path, nyu: Path, tmp_path: Path):
    result = invoke(tiny_artifact, tmp_path / "out", "--precision", "fp16", "--data", f"nyu={nyu}")
    assert result.exit_code == 0
    assert json.loads(result.stdout[result.stdout.index("{") :])["fp16"]["losses"]["folded"]
    assert {form.precision for form in Artifact.open(tmp_path / "out").variants.forms} == {"fp32", "fp16"}


@pytest.mark.parametrize(
    ("precision", "data", "message"),
    [
        ("fp8", "nyu=x", "--precision is 'fp8'; write some of fp16, bf16, int8"),
        ("fp32", "nyu=x", "--precision is 'fp32'"),
        ("fp16", "nyu", "--data is 'nyu'; write each data set once"),
        ("fp16", "other=x", "data set 'other' is unknown"),
        ("fp16", "nyu=x", "no photos"),
    ],
)
def test_the_command_answers_a_mistake_with_one_sentence(
    tiny_artifact: Path, tmp_path: Path, precision: str, data: str, message: str
):
    result = invoke(tiny_artifact, tmp_path / "out", "--precision", precision, "--data", data)
    assert result.exit_code == 1
    assert message in result.output


@pytest.mark.parametrize(
    ("figure", "before", "after", "share"),
    [
        ("mIoU_percent", 50.0, 49.0, 0.02),
        ("mIoU_percent", 50.0, 51.0, -0.02),
        ("RMSE_m", 0.5, 0.51, 0.02),
        ("RMSE_m", 0.0, 0.0, 0.0),
        ("RMSE_m", 0.0, 0.1, float("inf")),
        ("mIoU_percent", 50.0, float("nan"), float("inf")),
    ],
)
def test_a_loss_is_the_part_by_which_a_figure_is_worse(figure: str, before: float, after: float, share: float):
    assert Loss("nyu", "depth", figure, before, after).share == pytest.approx(share)


def test_a_figure_that_is_gone_is_lost_and_one_that_never_was_does_not_count():
    before: Figured = {"nyu": {"depth": {"RMSE_m": 0.5}, "normals": {"mean_angle_degrees": None}}}
    after: Figured = {"nyu": {"depth": {"RMSE_m": None}, "normals": {"mean_angle_degrees": None}}}
    with pytest.raises(AccuracyError, match="depth on nyu"):
        check("fp16", losses(before, after))
    with pytest.raises(AccuracyError, match="no label"):
        check("fp16", losses({"nyu": {"normals": {"mean_angle_degrees": None}}}, after))
