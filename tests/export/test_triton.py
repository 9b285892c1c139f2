"""The repository for Triton: its layout, its configuration by Triton's schema, its graphs by ONNX Runtime."""

import hashlib
import importlib.util
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner, Result
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

from export.__main__ import main
from export.errors import ExportError
from export.triton import TritonConfig, write_repository
from ptsa_serve.artifact import Artifact
from ptsa_serve.engines import EngineOptions, load_engine
from ptsa_serve.manifest import FileRecord
from ptsa_serve.plans import PlanRecord, plan_path
from ptsa_serve.predictor import Predictor
from ptsa_serve.tasks import TASKS

# The part of Triton's model_config.proto that is written here: message -> fields (number, name, type, repeated).
STRING, BOOL, INT32, INT64, UINT64, ENUM = 9, 8, 5, 3, 4, 14
FIELDS: dict[str, list[tuple[int, str, Any, bool]]] = {
    "Tensor": [(1, "name", STRING, False), (2, "data_type", ".t.Type", False)],
    "ModelInput": [(1, "name", STRING, False), (2, "data_type", ".t.Type", False), (4, "dims", INT64, True)],
    "ModelOutput": [
        (1, "name", STRING, False), (2, "data_type", ".t.Type", False), (3, "dims", INT64, True),
        (4, "label_filename", STRING, False),
    ],
    "Batching": [(1, "preferred_batch_size", INT32, True), (2, "max_queue_delay_microseconds", UINT64, False)],
    "Group": [
        (1, "name", STRING, False), (4, "kind", ".t.Kind", False), (2, "count", INT32, False),
        (5, "profile", STRING, True),
    ],
    "FileOf": [(1, "key", STRING, False), (2, "value", STRING, False)],
    "ModelConfig": [
        (1, "name", STRING, False), (17, "backend", STRING, False), (4, "max_batch_size", INT32, False),
        (5, "input", ".t.ModelInput", True), (6, "output", ".t.ModelOutput", True),
        (7, "instance_group", ".t.Group", True), (11, "dynamic_batching", ".t.Batching", False),
        (9, "cc_model_filenames", ".t.FileOf", True),
    ],
}  # fmt: skip
ENUMS = {"Type": {"TYPE_INVALID": 0, "TYPE_UINT8": 2, "TYPE_FP32": 11}, "Kind": {"KIND_AUTO": 0, "KIND_GPU": 1}}


def own_schema() -> Any:
    """Those fields as a message; anything else in a text is an error of parsing."""
    file = descriptor_pb2.FileDescriptorProto(name="t.proto", package="t", syntax="proto3")
    for name, values in ENUMS.items():
        enum = file.enum_type.add(name=name)
        for key, number in values.items():
            enum.value.add(name=key, number=number)
    for name, fields in FIELDS.items():
        message = file.message_type.add(name=name)
        for number, key, kind, repeated in fields:
            field = message.field.add(name=key, number=number, label=3 if repeated else 1)
            if isinstance(kind, str):
                field.type_name = kind
                field.type = ENUM if kind.rpartition(".")[2] in ENUMS else 11
            else:
                field.type = kind
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.ModelConfig"))


def tritons_schema() -> Any:
    """The one in the package tritonclient, without the rest of it, which needs gRPC."""
    package = importlib.util.find_spec("tritonclient")
    if package is None or not package.submodule_search_locations:
        pytest.skip("tritonclient is not there: `pip install --no-deps tritonclient` brings Triton's own schema")
    path = Path(package.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("triton_model_config_pb2", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ModelConfig


@pytest.fixture(scope="module", params=[own_schema, tritons_schema])
def schema(request: pytest.FixtureRequest) -> Any:
    return request.param()


@pytest.fixture(scope="module")
def repository(tiny_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("triton") / "repository"
    write_repository(TritonConfig(tiny_artifact, out, max_batch=4, delay_us=500))
    return out


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, list(map(str, arguments)))


def test_the_configuration_is_one_of_tritons_with_what_the_graph_has(repository: Path, schema: Any):
    models = sorted(folder.name for folder in repository.iterdir())
    assert models == ["ptsa-tiny_48x64", "ptsa-tiny_56x56", "ptsa-tiny_64x48"]
    for folder in repository.iterdir():
        config = text_format.Parse((folder / "config.pbtxt").read_text(), schema())
        graph = onnx.load(folder / "1" / "model.onnx" / "model.onnx", load_external_data=False).graph
        assert config.name == folder.name
        assert (config.backend, config.max_batch_size) == ("onnxruntime", 4)
        assert config.dynamic_batching.max_queue_delay_microseconds == 500
        types = {onnx.TensorProto.UINT8: "TYPE_UINT8", onnx.TensorProto.FLOAT: "TYPE_FP32"}
        for said, found in ((config.input, graph.input), (config.output, graph.output)):
            assert [tensor.name for tensor in said] == [value.name for value in found]
            for tensor, value in zip(said, found, strict=True):
                shape = [axis.dim_value for axis in value.type.tensor_type.shape.dim]
                assert list(tensor.dims) == shape[1:]
                enum = type(tensor).DESCRIPTOR.fields_by_name["data_type"].enum_type
                assert enum.values_by_number[tensor.data_type].name == types[value.type.tensor_type.elem_type]


def test_labels_are_the_classes_in_the_order_of_their_numbers(repository: Path, schema: Any):
    folder = repository / "ptsa-tiny_48x64"
    config = text_format.Parse((folder / "config.pbtxt").read_text(), schema())
    named = {output.name: output.label_filename for output in config.output if output.label_filename}
    assert set(named) == {"segmentation"}
    assert (folder / named["segmentation"]).read_text().splitlines() == list(TASKS["segmentation"].classes)


def test_the_graphs_load_as_they_lie_and_give_the_sample_of_the_model(repository: Path, tiny_artifact: Path):
    artifact = Artifact.open(tiny_artifact)
    photo, expected = artifact.sample()
    prepared = Predictor(artifact, load_engine("onnxruntime", artifact, EngineOptions(threads=1))).prepare(photo)
    name = f"ptsa-tiny_{prepared.size[0]}x{prepared.size[1]}"
    path = repository / name / "1" / "model.onnx" / "model.onnx"
    onnx.checker.check_model(path)  # data files too: no links, nothing outside the folder
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for count in (1, 3):
        found = session.run(list(expected), {"image": np.stack([prepared.pixels] * count)})
        for (task, values), maps in zip(expected.items(), found, strict=True):
            assert maps.shape == (count, *values.shape), task
            assert np.mean(np.abs(maps.astype(np.float64) - values)) < 1e-3, task


def test_a_graph_of_any_size_is_a_model_with_open_dimensions(any_size_artifact: Path, tmp_path: Path, schema: Any):
    names = write_repository(TritonConfig(any_size_artifact, tmp_path / "out"))
    assert sorted(names) == ["ptsa-tiny", "ptsa-tiny_48x64", "ptsa-tiny_56x56", "ptsa-tiny_64x48"]
    folder = tmp_path / "out" / "ptsa-tiny"
    config = text_format.Parse((folder / "config.pbtxt").read_text(), schema())
    assert list(config.input[0].dims) == [-1, -1, 3]
    assert [list(output.dims) for output in config.output if output.name == "normals"] == [[-1, -1, 3]]
    session = onnxruntime.InferenceSession(
        folder / "1" / "model.onnx" / "model.onnx", providers=["CPUExecutionProvider"]
    )
    assert session.run(["depth"], {"image": np.zeros((2, 40, 72, 3), np.uint8)})[0].shape == (2, 40, 72)


def with_plans(folder: Path, gpus: dict[str, str], shapes: tuple[tuple[int, int, int], ...]) -> None:
    """Files that stand for plans: Triton alone reads what is in them."""
    manifest = Artifact.open(folder).manifest
    digests = {file.path: file.sha256 for file in manifest.files}
    (folder / "plans").mkdir()
    files = list(manifest.files)
    for gpu, capability in gpus.items():
        record = PlanRecord(
            runtime="tensorrt", runtime_version="11.4", gpu=gpu, compute_capability=capability,
            graph="model-48x64.onnx", graph_sha256=digests["model-48x64.onnx"],
            weights_sha256=digests["weights.safetensors"], shapes=shapes,
        )  # fmt: skip
        path = plan_path(record, tuple(TASKS))
        (folder / path).write_bytes(gpu.encode())
        digest = hashlib.sha256(gpu.encode()).hexdigest()
        facts = {"precision": "fp32", "branches": "folded", "tasks": tuple(TASKS), "plan": record}
        files.append(FileRecord(path=path, role="plan", bytes=len(gpu), sha256=digest, **facts))
    (folder / "manifest.json").write_text(manifest.model_copy(update={"files": tuple(files)}).to_json())


def test_plans_are_chosen_by_gpu_and_batches_by_profile(tiny_artifact: Path, tmp_path: Path, schema: Any):
    model = shutil.copytree(tiny_artifact, tmp_path / "model")
    with_plans(model, {"A100": "8.0", "H100": "9.0"}, ((1, 48, 64), (4, 48, 64)))
    (name,) = write_repository(TritonConfig(model, tmp_path / "out", backend="tensorrt", max_batch=64))
    config = text_format.Parse((tmp_path / "out" / name / "config.pbtxt").read_text(), schema())
    assert (config.backend, config.max_batch_size) == ("tensorrt", 4)
    assert list(config.dynamic_batching.preferred_batch_size) == [1, 4]
    assert list(config.instance_group[0].profile) == ["0", "1"]
    files = config.cc_model_filenames
    files = dict(files) if hasattr(files, "items") else {entry.key: entry.value for entry in files}
    assert {key: (tmp_path / "out" / name / "1" / file).read_text() for key, file in files.items()} == {
        "8.0": "A100",
        "9.0": "H100",
    }


def test_two_plans_that_triton_cannot_tell_apart_are_refused(tiny_artifact: Path, tmp_path: Path):
    model = shutil.copytree(tiny_artifact, tmp_path / "model")
    with_plans(model, {"H100": "9.0", "H200": "9.0"}, ((1, 48, 64),))
    with pytest.raises(ExportError, match=r"compute capability 9\.0"):
        write_repository(TritonConfig(model, tmp_path / "out", backend="tensorrt"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--backend", "tensorrt"], "python -m export tensorrt"),
        (["--precision", "fp16"], "the model has no fp16 graph"),
        (["--branches", "low_rank"], "the model has no low_rank graph"),
    ],
)
def test_what_the_model_has_not_is_one_sentence_and_no_folder(
    tiny_artifact: Path, tmp_path: Path, options: list[str], said: str
):
    done = run("triton", tiny_artifact, tmp_path / "out", *options)
    assert done.exit_code == 1
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_there_is_left_alone(tiny_artifact: Path, tmp_path: Path):
    (tmp_path / "mine").write_text("precious")
    done = run("triton", tiny_artifact, tmp_path)
    assert done.exit_code == 1
    assert "exists; name a new folder" in done.stderr
    assert (tmp_path / "mine").read_text() == "precious"


def test_the_command_names_the_models(tiny_artifact: Path, tmp_path: Path):
    done = run("triton", tiny_artifact, tmp_path / "out")
    assert done.exit_code == 0
    assert "ptsa-tiny_48x64" in done.output
