"""ONNX Runtime's engines on a GPU, as far as a CPU can tell: the same path with the provider of the CPU."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ptsa_serve.artifact import Artifact
from ptsa_serve.engines import ENGINES, EngineOptions, load_engine, onnxruntime_gpu, onnxruntime_tensorrt
from ptsa_serve.engines.onnxruntime import import_runtime
from ptsa_serve.engines.onnxruntime_gpu import Provider, ProviderEngine
from ptsa_serve.errors import EngineError
from ptsa_serve.tasks import TASKS

CPU = Provider("stand-in", "CPUExecutionProvider", "cpu", lambda *_: {}, fixed_sizes=False, most=3)
NAMES = ["onnxruntime-cuda", "onnxruntime-tensorrt"]


@pytest.fixture(scope="module")
def artifact(tiny_artifact: Path) -> Artifact:
    return Artifact.open(tiny_artifact)


@pytest.fixture
def engine(artifact: Artifact) -> Iterator[ProviderEngine]:
    engine = onnxruntime_gpu.load(CPU, artifact, EngineOptions())
    yield engine
    engine.close()


@pytest.mark.parametrize(("size", "count"), [((48, 64), 1), ((64, 48), 3), ((56, 56), 7)])
def test_maps_are_those_of_the_reference(engine: ProviderEngine, artifact: Artifact, size, count: int):
    batch = np.random.default_rng(count).integers(0, 256, (count, *size, 3), dtype=np.uint8)
    expected = load_engine("onnxruntime", artifact, EngineOptions(threads=1)).run(batch)
    for tasks in (None, ["saliency", "depth"]):
        found = engine.run(batch, tasks)
        assert set(found) == set(tasks or TASKS)
        for name, values in found.items():
            assert values.dtype == expected[name].dtype
            np.testing.assert_allclose(values, expected[name], atol=1e-6)


def test_maps_stay_as_they_are_when_the_next_photo_is_run(engine: ProviderEngine):
    batch = np.zeros((1, 48, 64, 3), np.uint8)
    first = engine.run(batch)["depth"]
    kept = first.copy()
    engine.run(batch + 200)
    assert np.array_equal(first, kept)


@pytest.mark.parametrize("name", NAMES)
def test_a_build_without_the_provider_is_refused_and_offers_nothing(artifact: Artifact, name: str):
    if "CUDAExecutionProvider" in import_runtime().get_available_providers():
        pytest.skip("this is the build for GPUs")
    assert ENGINES[name].offers(artifact) == []
    with pytest.raises(EngineError, match=r"was built without .*; install it with `pip install 'ptsa-serve\[gpu\]'`"):
        ENGINES[name].load(artifact, EngineOptions())


def test_a_provider_that_did_not_start_is_an_error_and_no_slow_answer(engine: ProviderEngine, monkeypatch):
    ort = engine._ort
    own = ort.InferenceSession

    class Fallen(own):
        def get_providers(self) -> list[str]:
            return ["SomethingElse"]

    monkeypatch.setattr(ort, "InferenceSession", Fallen)
    with pytest.raises(
        EngineError, match=r"would run .*model-48x64.onnx on the CPU: CPUExecutionProvider did not start"
    ):
        engine.run(np.zeros((1, 48, 64, 3), np.uint8))


def test_a_part_on_another_provider_is_an_error_that_names_the_operators(engine: ProviderEngine, monkeypatch):
    class Elsewhere:
        ep_name = "AnotherProvider"

        def __init__(self, part) -> None:
            self._part = part

        def get_nodes(self):
            return self._part.get_nodes()

    own = engine._ort.InferenceSession

    class Split(own):
        def get_provider_graph_assignment_info(self):
            return [Elsewhere(part) for part in super().get_provider_graph_assignment_info()]

    monkeypatch.setattr(engine._ort, "InferenceSession", Split)
    with pytest.raises(EngineError, match=r"on the CPU: ArgMax, Conv, .*MatMul") as caught:
        engine.run(np.zeros((1, 48, 64, 3), np.uint8))
    # Arithmetic of shapes may be anywhere.
    assert "Squeeze" not in str(caught.value)


def test_what_the_runtime_builds_is_kept_with_a_range_of_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    options = onnxruntime_tensorrt._options(1, "image", (48, 64), 8)
    assert options["device_id"] == "1"
    assert options["trt_profile_min_shapes"] == "image:1x48x64x3"
    assert options["trt_profile_max_shapes"] == "image:8x48x64x3"
    assert Path(options["trt_engine_cache_path"]).is_dir()
    assert Path(options["trt_engine_cache_path"]).is_relative_to(tmp_path)
