"""The engines on plans without a GPU, on stand-ins; what only a GPU can tell is in test_engines_gpu.py."""

import hashlib
import inspect
import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ptsa_serve.artifact import Artifact
from ptsa_serve.engines import ENGINES, EngineOptions, load_engine
from ptsa_serve.engines import cuda as cuda_module
from ptsa_serve.engines.planned import PlanEngine
from ptsa_serve.errors import EngineError
from ptsa_serve.manifest import FileRecord, Manifest
from ptsa_serve.plans import PlanRecord, plan_path
from ptsa_serve.tasks import TASKS
from tests.serve.stand_ins import GPU, SIZE, VERSION, FakeContext, FakeCuda, FakeEngine, FakeTensorRT

BATCHES = (1, 4)


@pytest.mark.parametrize(
    ("module", "stand_ins"),
    [
        ("cuda.bindings.runtime", {"": FakeCuda}),
        ("tensorrt", {"": FakeTensorRT, "ICudaEngine": FakeEngine, "IExecutionContext": FakeContext}),
        ("tensorrt_rtx", {"": FakeTensorRT, "ICudaEngine": FakeEngine, "IExecutionContext": FakeContext}),
    ],
)
def test_the_real_ones_have_what_the_stand_ins_have(module: str, stand_ins: dict[str, type]):
    real = pytest.importorskip(module)
    for name, stand_in in stand_ins.items():
        owner = getattr(real, name) if name else real
        ours = {key for key in vars(stand_in) if not key.startswith("_")} - {"enqueue"}
        assert ours
        assert not [key for key in ours if not hasattr(owner, key)]


def test_every_name_that_is_used_of_the_cuda_runtime_exists():
    real = pytest.importorskip("cuda.bindings.runtime")
    used = set(re.findall(r"\bcuda[A-Z]\w+", inspect.getsource(cuda_module)))
    enums = (real.cudaMemcpyKind, real.cudaStreamCaptureMode, real.cudaError_t)
    assert "cudaGraphInstantiate" in used
    assert not [name for name in used if not any(hasattr(owner, name) for owner in (real, *enums))]


@pytest.fixture
def artifact(tiny_artifact: Path, tmp_path: Path) -> Artifact:
    """The tiny model with two plans for `GPU`: of all tasks, and of depth alone."""
    folder = shutil.copytree(tiny_artifact, tmp_path / "model")
    for tasks in (tuple(TASKS), ("depth",)):
        add_plan(folder, tasks)
    return Artifact.open(folder)


def add_plan(folder: Path, tasks: tuple[str, ...], **changes: Any) -> None:
    manifest = Artifact.open(folder).manifest
    digests = {file.path: file.sha256 for file in manifest.files}
    facts = {
        "runtime": "tensorrt", "runtime_version": VERSION, "gpu": GPU[0], "compute_capability": GPU[1],
        "graph": "model-48x64.onnx", "graph_sha256": digests["model-48x64.onnx"],
        "weights_sha256": digests["weights.safetensors"], "shapes": tuple((batch, *SIZE) for batch in BATCHES),
    }  # fmt: skip
    record = PlanRecord(**{**facts, **changes})
    data = json.dumps({"tasks": tasks, "shapes": record.shapes}).encode()
    file = FileRecord(
        path=plan_path(record, tasks), role="plan", bytes=len(data), sha256=hashlib.sha256(data).hexdigest(),
        precision="fp32", branches="folded", tasks=tasks, plan=record,
    )  # fmt: skip
    (folder / "plans").mkdir(exist_ok=True)
    (folder / file.path).write_bytes(data)
    rewrite(folder, manifest.model_copy(update={"files": (*manifest.files, file)}))


def rewrite(folder: Path, manifest: Manifest) -> None:
    (folder / "manifest.json").write_text(manifest.to_json())


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", fake)
    return fake


@pytest.fixture
def tensorrt(artifact: Artifact, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> FakeTensorRT:
    fake = FakeTensorRT(cuda, artifact)
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    return fake


@pytest.fixture
def engine(artifact: Artifact, tensorrt: FakeTensorRT) -> Iterator[PlanEngine]:
    engine = ENGINES["tensorrt"].load(artifact, EngineOptions())
    assert isinstance(engine, PlanEngine)
    yield engine
    engine.close()


def photos(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, *SIZE, 3), dtype=np.uint8)


@pytest.mark.parametrize("count", [1, 2, 4, 5, 11])
def test_any_number_of_photos_gives_the_maps_of_the_reference(engine: PlanEngine, artifact: Artifact, count: int):
    expected = load_engine("onnxruntime", artifact, EngineOptions(threads=1)).run(photos(count))
    for _ in range(2):  # the second one from captured graphs
        found = engine.run(photos(count))
        assert list(found) == list(expected)
        for name, values in expected.items():
            assert found[name].dtype == values.dtype
            np.testing.assert_allclose(found[name], values, atol=1e-6)


def test_maps_stay_as_they_are_when_the_next_photo_is_run(engine: PlanEngine):
    first = engine.run(photos(1))
    kept = {name: values.copy() for name, values in first.items()}
    engine.run(photos(3))
    assert all(np.array_equal(first[name], kept[name]) for name in kept)


def test_each_number_of_photos_is_prepared_once_and_then_launched(
    engine: PlanEngine, tensorrt: FakeTensorRT, cuda: FakeCuda
):
    before = cuda.allocated
    for count in (1, 3, 1, 3, 4):
        engine.run(photos(count))
    assert tensorrt.contexts == 3
    assert cuda.launched == 5
    assert cuda.allocated == before


def test_work_that_cannot_be_captured_runs_without(
    engine: PlanEngine, cuda: FakeCuda, artifact: Artifact, caplog: pytest.LogCaptureFixture
):
    cuda.capturable = False
    found = engine.run(photos(2))
    expected = load_engine("onnxruntime", artifact, EngineOptions(threads=1)).run(photos(2))
    np.testing.assert_allclose(found["depth"], expected["depth"], atol=1e-6)
    assert "without a CUDA graph" in caplog.text
    assert cuda.launched == 0


def test_fewer_tasks_run_the_smallest_plan_that_has_them(engine: PlanEngine, monkeypatch: pytest.MonkeyPatch):
    ran: list[str] = []
    inner = engine._run
    monkeypatch.setattr(engine, "_run", lambda path, *rest: (ran.append(path), inner(path, *rest))[1])
    assert list(engine.run(photos(1), ["depth"])) == ["depth"]
    assert list(engine.run(photos(1), ["saliency", "depth"])) == ["depth", "saliency"]
    assert len(set(ran)) == 2


def test_a_closed_engine_has_given_all_memory_back(artifact: Artifact, tensorrt: FakeTensorRT, cuda: FakeCuda):
    engine = ENGINES["tensorrt"].load(artifact, EngineOptions())
    engine.run(photos(1))
    assert cuda.live
    engine.close()
    assert not cuda.live


def test_sizes_are_those_that_plans_are_for(engine: PlanEngine):
    assert list(engine.sizes) == [SIZE]
    with pytest.raises(EngineError, match="48x64"):
        engine.run(np.zeros((1, 56, 56, 3), np.uint8))


def test_offers_are_the_forms_with_plans_for_this_machine(artifact: Artifact, tensorrt: FakeTensorRT, cuda: FakeCuda):
    assert ENGINES["tensorrt"].offers(artifact) == [EngineOptions(precision="fp32", branches="folded")]
    tensorrt.__version__ = "11.5.0"
    assert ENGINES["tensorrt"].offers(artifact) == []
    tensorrt.__version__, cuda.devices = VERSION, 0
    assert ENGINES["tensorrt"].offers(artifact) == []


def refusal(artifact: Artifact, name: str = "tensorrt", options: EngineOptions | None = None) -> str:
    with pytest.raises(EngineError) as caught:
        ENGINES[name].load(artifact, options or EngineOptions())
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt_rtx"])
def test_a_missing_runtime_is_named_with_its_installation(
    tiny_artifact: Path, name: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, name, None)
    artifact = Artifact.open(tiny_artifact)
    assert ENGINES[name].offers(artifact) == []
    assert "pip install" in refusal(artifact, name)


def test_an_old_runtime_is_refused_with_the_oldest_that_will_do(artifact: Artifact, tensorrt: FakeTensorRT):
    tensorrt.__version__ = "10.3.0"
    assert "10.3.0 is too old, it must be 10.13 or newer" in refusal(artifact)


def test_a_machine_without_gpu_is_told_so(artifact: Artifact, tensorrt: FakeTensorRT, cuda: FakeCuda):
    cuda.devices = 0
    assert "no NVIDIA GPU" in refusal(artifact)


def test_a_gpu_that_is_not_there_is_named(artifact: Artifact, tensorrt: FakeTensorRT):
    assert "no GPU number 3; this machine has 1" in refusal(artifact, options=EngineOptions(device=3))


def test_a_missing_binding_is_named_with_its_installation(
    artifact: Artifact, tensorrt: FakeTensorRT, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    assert "pip install 'cuda-bindings" in refusal(artifact)


def test_a_model_without_plans_is_told_the_command_that_builds_one(
    tiny_artifact: Path, artifact: Artifact, tensorrt: FakeTensorRT, cuda: FakeCuda
):
    said = refusal(Artifact.open(tiny_artifact))
    assert f"python -m export tensorrt {tiny_artifact} --runtime tensorrt" in said
    assert not cuda.live


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"runtime_version": "11.3.0"}, "11.3.0 for NVIDIA Test (9.0)"),
        ({"gpu": "NVIDIA L4", "compute_capability": "8.9"}, "11.4.0 for NVIDIA L4 (8.9)"),
    ],
)
def test_a_plan_of_another_version_or_gpu_is_refused_with_the_command(
    tiny_artifact: Path, tmp_path: Path, artifact: Artifact, tensorrt: FakeTensorRT, changes: dict, found: str
):
    folder = shutil.copytree(tiny_artifact, tmp_path / "other")
    add_plan(folder, tuple(TASKS), **changes)
    said = refusal(Artifact.open(folder))
    assert found in said
    assert "11.4.0 on NVIDIA Test (9.0)" in said
    assert f"python -m export tensorrt {folder}" in said


def test_a_plan_of_a_part_of_the_tasks_alone_serves_nothing(
    tiny_artifact: Path, tmp_path: Path, artifact: Artifact, tensorrt: FakeTensorRT
):
    folder = shutil.copytree(tiny_artifact, tmp_path / "other")
    add_plan(folder, ("depth",))
    assert ENGINES["tensorrt"].offers(Artifact.open(folder)) == []
    assert "or of a part of its tasks; build one" in refusal(Artifact.open(folder))


@pytest.mark.parametrize("source", ["graph_sha256", "weights_sha256"])
def test_a_plan_of_another_model_is_not_run(
    tiny_artifact: Path, tmp_path: Path, artifact: Artifact, tensorrt: FakeTensorRT, source: str
):
    folder = shutil.copytree(tiny_artifact, tmp_path / "other")
    add_plan(folder, tuple(TASKS), **{source: "0" * 64})
    said = refusal(Artifact.open(folder))
    assert "are of other graphs or weights than it has" in said
    assert "python -m export tensorrt" in said


def test_a_plan_that_the_runtime_refuses_is_named_with_its_reason(artifact: Artifact, tensorrt: FakeTensorRT):
    plan = next(file for file in artifact.manifest.files if file.plan)
    (artifact.folder / plan.path).write_bytes(b"no plan")
    said = refusal(artifact)
    assert plan.path in said
    assert "magic tag is wrong" in said


def test_equal_plans_have_equal_names_and_others_have_not(artifact: Artifact):
    record = next(file.plan for file in artifact.manifest.files if file.plan)
    assert record
    path = plan_path(record, tuple(TASKS))
    assert path == plan_path(PlanRecord.model_validate_json(record.model_dump_json()), tuple(TASKS))
    others = [{"runtime_version": "12"}, {"gpu": "else"}, {"weights_sha256": "1" * 64}, {"options": {"level": 5}}]
    names = {plan_path(record.model_copy(update=other), tuple(TASKS)) for other in others}
    assert len({path, plan_path(record, ("depth",)), *names}) == 2 + len(others)
