"""What `make gpu-check` measures, with an engine on the CPU in place of those on a GPU."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from benchmarks.__main__ import main
from benchmarks.gpu import GpuConfig, gpu_table, measure_gpu
from benchmarks.gpu_torch import torch_network, torch_runs
from benchmarks.measurement import is_measurement, save
from ptsa_serve.artifact import Artifact, default_artifact
from ptsa_serve.engines import ENGINES, EngineRow
from ptsa_serve.errors import EngineError
from ptsa_serve.tasks import TASKS
from training.backbones.swin import SWINS


@pytest.fixture
def config(tiny_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GpuConfig:
    for name in [name for name, row in ENGINES.items() if row.device == "gpu"]:
        monkeypatch.delitem(ENGINES, name)
    monkeypatch.setitem(ENGINES, "stand-in", EngineRow(ENGINES["onnxruntime"].module, (), "gpu"))
    monkeypatch.setattr("benchmarks.gpu.FLAVOURS", {})
    return GpuConfig(Artifact.open(tiny_artifact), tmp_path / "work", (48, 64), (1, 2), rounds=2, device="cpu")


def test_every_engine_has_a_row_a_batch_with_its_differences(config: GpuConfig, tmp_path: Path) -> None:
    measurement, wrong = measure_gpu(config)
    assert wrong == []
    assert set(measurement.figures) == {f"stand-in fp32 folded, batch {batch}" for batch in (1, 2)}
    for row, batch in zip(measurement.figures.values(), (1, 2), strict=True):
        assert row["photos_per_second"] == pytest.approx(1000 * batch / row["ms"])
        assert row["differences"] == dict.fromkeys(TASKS, 0.0)
    assert "without torch" in measurement.conditions  # the tiny model's backbone is no real one
    assert "stand-in fp32 folded, batch 2" in gpu_table(measurement)
    save(measurement, tmp_path / "found.json")
    assert is_measurement(tmp_path / "found.json")


def test_maps_that_are_off_are_named_with_the_figure(config: GpuConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    from ptsa_serve.engines.onnxruntime import OnnxRuntimeEngine

    own, runs = OnnxRuntimeEngine.run, []

    def off(self: OnnxRuntimeEngine, batch: np.ndarray, *rest: object, **options: object) -> dict[str, np.ndarray]:
        runs.append(batch)
        maps = own(self, batch, *rest, **options)
        return maps if len(runs) == 1 else {**maps, "depth": maps["depth"] + np.float32(0.5)}

    monkeypatch.setattr(OnnxRuntimeEngine, "run", off)
    _, wrong = measure_gpu(config)
    assert wrong[0] == "stand-in fp32 folded: depth differs by 0.5, allowed 0.0001"
    assert "does not reproduce the model's sample" in wrong[1]


def test_an_engine_that_is_missing_is_told_with_its_reason(config: GpuConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENGINES, "tensorrt", EngineRow("ptsa_serve.engines.tensorrt", ("tensorrt",), "gpu"))
    measurement, _ = measure_gpu(config)
    assert str(measurement.conditions["without tensorrt"])
    assert "without tensorrt" in gpu_table(measurement)


def test_the_copy_is_kept_for_the_same_model_and_made_again_for_another(config: GpuConfig, tmp_path: Path) -> None:
    measure_gpu(config)
    mark = config.work / "model" / "mark"
    mark.touch()
    measure_gpu(config)
    assert mark.exists()
    other = shutil.copytree(config.artifact.folder, tmp_path / "other")
    data = (other / "sample.jpg").read_bytes()
    (config.work / "model" / "sample.jpg").write_bytes(data[:-1])
    measure_gpu(config)
    assert not mark.exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_machine_without_gpu_gets_one_sentence() -> None:
    done = CliRunner().invoke(main, ["gpu"])
    assert isinstance(done.exception, EngineError)
    assert "there is no NVIDIA GPU here" in str(done.exception)


@pytest.mark.parametrize("way", ["eager", pytest.param("compiled", marks=pytest.mark.slow)])  # traced for a minute
def test_pytorch_runs_the_same_network_in_every_way(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    monkeypatch.setitem(SWINS, "swin_nano", {"embed_dim": 12, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 2, 3)})
    network = torch_network(Artifact.open(default_artifact()).manifest, "cpu", None)
    photos = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    runs = torch_runs(network, "cpu", backend="eager")
    expected, found = (runs[f"{way} {precision}"](photos) for precision in ("fp32", "bf16"))
    with torch.inference_mode():
        direct = network(torch.from_numpy(photos))
    assert set(expected) == set(found) == set(TASKS)
    for task in ("depth", "normals", "saliency"):
        np.testing.assert_allclose(expected[task], direct[task].numpy(), atol=1e-5)
        assert not np.array_equal(found[task], expected[task])


def test_without_a_size_photos_have_the_first_of_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[GpuConfig] = []

    def measure(config: GpuConfig, report: object) -> None:
        seen.append(config)
        raise EngineError("stopped here")

    monkeypatch.setattr("benchmarks.export_questions.measure_gpu", measure)
    for asked in ([], ["--size", "224x224"]):
        CliRunner().invoke(main, ["gpu", "--work", str(tmp_path), *asked])
    shipped = Artifact.open(default_artifact()).variants
    assert [config.size for config in seen] == [shipped.sizes(shipped.form()).fixed[0], (224, 224)]
