"""Plans for real, on any machine: TensorRT for RTX parses and builds without a GPU. Nothing runs here."""

import errno
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper

from export.__main__ import main
from export.annotate import annotate
from export.errors import ExportError
from export.options import parse_batches
from export.plans import FLAVOURS, PlansConfig, build_plans
from export.tensorrt import BuildOptions, build, parse
from ptsa_serve.artifact import Artifact, default_artifact
from ptsa_serve.engines.flavour import Imported
from ptsa_serve.errors import EngineError
from ptsa_serve.graphs import Graph
from ptsa_serve.manifest import Manifest
from ptsa_serve.tasks import TASKS
from ptsa_serve.variants import Variant

SIZE = (48, 64)


@pytest.fixture(scope="module")
def runtime() -> Imported:
    try:
        return FLAVOURS["tensorrt_rtx"].load()
    except EngineError as error:
        pytest.skip(str(error))


@pytest.fixture
def model(tiny_artifact: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_artifact, tmp_path / "model")


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, list(map(str, arguments)))


def variants(folder: Path) -> Iterator[tuple[Artifact, Variant]]:
    """One graph of each form, of a fixed and of any size."""
    artifact = Artifact.open(folder)
    kinds = {(variant.form, variant.size is None): variant for variant in artifact.variants.all}
    return ((artifact, variant) for variant in kinds.values())


@pytest.mark.parametrize("which", ["tiny", "any size", "shipped"])
def test_every_form_parses_with_the_inputs_and_outputs_of_the_contract(
    runtime: Imported, tiny_artifact: Path, any_size_artifact: Path, which: str
):
    folders = {"tiny": tiny_artifact, "any size": any_size_artifact, "shipped": default_artifact()}
    for artifact, variant in variants(folders[which]):
        graph = artifact.graph(variant)
        arrays = artifact.weights(variant).make(graph.weights)
        _, network = parse(runtime, graph, arrays, variant.path)
        size = variant.size or (-1, -1)
        pixels = network.get_input(0)
        assert network.num_inputs == 1
        assert (pixels.name, pixels.dtype) == ("image", runtime.api.DataType.UINT8)
        assert tuple(pixels.shape) == (-1, *size, 3)
        outputs = {o.name: o for o in map(network.get_output, range(network.num_outputs))}
        assert set(outputs) == set(variant.tasks)
        for name, output in outputs.items():
            kind = TASKS[name].kind
            assert tuple(output.shape)[:3] == (-1, *size)
            assert output.dtype == (runtime.api.DataType.UINT8 if kind == "classes" else runtime.api.DataType.FLOAT)


@pytest.mark.parametrize("tasks", [tuple(TASKS), ("depth",)])
def test_every_form_of_the_tiny_model_builds(runtime: Imported, model: Path, tasks: tuple[str, ...]):
    for form in Artifact.open(model).variants.forms:
        config = PlansConfig(
            model, "tensorrt_rtx", batches=(1, 3), precision=form.precision, branches=form.branches, tasks=tasks
        )
        records = build_plans(config)
        again = Artifact.open(model)  # every file as the manifest says
        assert {(r.precision, r.branches, r.tasks) for r in records} == {(form.precision, form.branches, tasks)}
        shapes = {shape for r in records if r.plan for shape in r.plan.shapes}
        assert shapes == {(batch, *size) for size in again.variants.sizes(form).fixed for batch in (1, 3)}
        assert all(record in again.manifest.files for record in records)


def test_a_graph_of_any_size_gets_a_profile_for_each_size_and_batch(
    runtime: Imported, any_size_artifact: Path, tmp_path: Path
):
    folder = shutil.copytree(any_size_artifact, tmp_path / "model")
    sizes = ((48, 64), (40, 80), (80, 40))
    one, other = build_plans(PlansConfig(folder, "tensorrt_rtx", sizes=sizes, batches=(1, 2)))
    assert one.plan
    assert other.plan
    # The first has a graph of its own, which is faster.
    assert (one.plan.graph, one.plan.shapes) == ("model-48x64.onnx", ((1, 48, 64), (2, 48, 64)))
    expected = tuple((batch, *size) for size in sizes[1:] for batch in (1, 2))
    assert (other.plan.graph, other.plan.shapes) == ("model.onnx", expected)


@pytest.mark.slow
def test_every_graph_of_the_shipped_model_builds(runtime: Imported, tmp_path: Path):
    folder = shutil.copytree(default_artifact(), tmp_path / "model")
    for form in Artifact.open(folder).variants.forms:
        options = BuildOptions(workspace_mib=2048)
        config = PlansConfig(folder, "tensorrt_rtx", batches=(1, 4), precision=form.precision, options=options)
        assert all(record.bytes > 1_000_000 for record in build_plans(config))


@pytest.mark.slow
def test_a_layer_that_needs_more_than_its_workspace_is_told_with_the_advice(runtime: Imported, tmp_path: Path):
    folder = shutil.copytree(default_artifact(), tmp_path / "model")
    options = BuildOptions(workspace_mib=16)
    with pytest.raises(ExportError, match=r"OutOfMemory .*; give it a larger --workspace, or smaller --batch"):
        build_plans(PlansConfig(folder, "tensorrt_rtx", sizes=((192, 256),), batches=(8,), options=options))
    assert not (folder / "plans").exists()


def test_a_plan_says_where_it_came_from(runtime: Imported, model: Path):
    (record,) = build_plans(PlansConfig(model, "tensorrt_rtx", sizes=(SIZE,), batches=(2,)))
    plan = record.plan
    assert plan
    assert (plan.runtime, plan.runtime_version, plan.gpu) == ("tensorrt_rtx", runtime.version, None)
    assert plan.shapes == ((2, *SIZE),)
    digests = {file.path: file.sha256 for file in Artifact.open(model).manifest.files}
    assert (plan.graph_sha256, plan.weights_sha256) == (digests["model-48x64.onnx"], digests["weights.safetensors"])
    assert plan.options == {"workspace_mib": 0, "level": 3, "tf32": False}


def test_what_is_there_is_not_built_again_and_a_new_one_takes_its_place(runtime: Imported, model: Path):
    config = PlansConfig(model, "tensorrt_rtx", sizes=(SIZE,), batches=(1,))
    lines: list[str] = []
    (first,) = build_plans(config)
    assert build_plans(config, lines.append) == [first]
    assert lines == [f"{first.path} is there already"]
    (second,) = build_plans(PlansConfig(model, "tensorrt_rtx", sizes=(SIZE,), batches=(2,)))
    assert [path.name for path in (model / "plans").iterdir()] == [Path(second.path).name]
    assert first not in Artifact.open(model).manifest.files


def test_figures_written_into_the_manifest_later_leave_plans_as_they_are(runtime: Imported, model: Path):
    (record,) = build_plans(PlansConfig(model, "tensorrt_rtx", sizes=(SIZE,), batches=(1,)))
    annotate(model, [])
    assert record in Artifact.open(model).manifest.files


def test_progress_is_told(runtime: Imported, model: Path):
    lines: list[str] = []
    build_plans(PlansConfig(model, "tensorrt_rtx", sizes=(SIZE,), batches=(1,)), lines.append)
    percents = [int(line.split()[1]) for line in lines if line.endswith("% built")]
    assert percents == sorted(percents)
    assert percents[-1] <= 100


def graph_of(*nodes: onnx.NodeProto) -> Graph:
    pixels = helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", *SIZE, 3])
    depth = helper.make_tensor_value_info("depth", TensorProto.FLOAT, None)
    graph = helper.make_graph(
        [helper.make_node("Cast", ["image"], ["x"], to=TensorProto.FLOAT), *nodes], "g", [pixels], [depth]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return Graph(model.SerializeToString(), ("depth",), ())


def test_an_operator_that_the_runtime_lacks_is_named(runtime: Imported):
    with pytest.raises(ExportError, match=r"cannot take model.onnx: operator Bernoulli \(node odd\) is not supported;"):
        parse(runtime, graph_of(helper.make_node("Bernoulli", ["x"], ["depth"], name="odd")), {}, "model.onnx")


def test_an_operator_on_a_type_that_it_may_not_have_is_named(runtime: Imported):
    pixels = helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", *SIZE, 3])
    planes = helper.make_tensor_value_info("planes", TensorProto.UINT8, None)
    nodes = [helper.make_node("Transpose", ["image"], ["planes"], perm=[0, 3, 1, 2])]
    model = helper.make_model(
        helper.make_graph(nodes, "g", [pixels], [planes]), opset_imports=[helper.make_opsetid("", 20)], ir_version=10
    )
    with pytest.raises(ExportError, match=r"operator Transpose is refused, .*UInt8") as caught:
        parse(runtime, Graph(model.SerializeToString(), ("planes",), ()), {}, "model.onnx")
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_graph_are_refused_in_one_line(runtime: Imported):
    with pytest.raises(ExportError, match=r"cannot take model\.onnx") as caught:
        parse(runtime, Graph(b"\xff" * 64, (), ()), {}, "model.onnx")
    assert "\n" not in str(caught.value)


def test_a_weight_of_another_length_is_refused(runtime: Imported, tiny_artifact: Path):
    artifact, variant = next(variants(tiny_artifact))
    graph = artifact.graph(variant)
    arrays = artifact.weights(variant).make(graph.weights)
    with pytest.raises(ExportError, match="cannot take"):
        parse(runtime, graph, {**arrays, "stem": arrays["stem"][:-1].copy()}, variant.path)


def test_a_build_that_fails_leaves_nothing_and_says_why(runtime: Imported, model: Path, monkeypatch):
    before = Artifact.open(model).manifest
    monkeypatch.setattr(runtime.api.Builder, "build_serialized_network", lambda *_: None)
    with pytest.raises(ExportError, match=r"cannot build a plan of model-48x64.onnx: it gives no reason"):
        build_plans(PlansConfig(model, "tensorrt_rtx", sizes=(SIZE,), batches=(1,)))
    assert Artifact.open(model).manifest == before
    assert not (model / "plans").exists()


def test_a_full_disk_is_one_sentence_and_the_model_stays_as_it_was(
    runtime: Imported, model: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    before = Artifact.open(model).manifest
    monkeypatch.setattr("export.plans.replace_file", full)
    done = run("tensorrt", model, "--runtime", "tensorrt_rtx", "--batch", "1")
    assert done.exit_code == 1
    assert "No space left on device" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert Artifact.open(model).manifest == before


def test_a_build_that_is_stopped_ends_as_one_that_was_stopped(runtime: Imported, model: Path):
    def stop(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_plans(PlansConfig(model, "tensorrt_rtx", sizes=(SIZE,), batches=(1,)), stop)
    assert not (model / "plans").exists()


def test_too_little_workspace_is_a_sentence_with_the_advice(runtime: Imported):
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[0, 1, 3, 2]),
        helper.make_node("MatMul", ["x", "t"], ["depth"]),
    ]
    config = {"name": "m", "input_name": "image", "timing_cache": None, "report": lambda line: None}
    assert build(runtime, graph_of(*nodes), {}, [(1, *SIZE)], BuildOptions(), **config)
    runtime.log.errors[:] = ["OutOfMemory (Requested size was 355173008 bytes.)"]
    original = runtime.api.Builder.build_serialized_network
    try:
        runtime.api.Builder.build_serialized_network = lambda *_: None
        with pytest.raises(ExportError, match=r"give it a larger --workspace, or smaller --batch"):
            build(runtime, graph_of(*nodes), {}, [(1, *SIZE)], BuildOptions(1), **config)
    finally:
        runtime.api.Builder.build_serialized_network = original


def test_a_plan_that_vanished_or_changed_is_noticed_when_the_model_is_opened(runtime: Imported, model: Path):
    (record,) = build_plans(PlansConfig(model, "tensorrt_rtx", sizes=(SIZE,), batches=(1,)))
    data = bytearray((model / record.path).read_bytes())
    data[-1] ^= 1
    (model / record.path).write_bytes(data)
    done = run("tensorrt", model, "--runtime", "tensorrt_rtx")
    assert done.exit_code == 1
    assert "was changed" in done.stderr


@pytest.mark.parametrize("text", ["", "0", "1,1", "1;2", "1000", "a"])
def test_batches_that_are_none_are_refused(text: str):
    with pytest.raises(ExportError, match="batches are"):
        parse_batches(text)


def test_batches_are_sorted():
    assert parse_batches("8,1") == (1, 8)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--size", "32x32"], "48x64"),
        (["--precision", "int8"], "the model has no int8 graph"),
        (["--tasks", "edges"], "there is no task 'edges'"),
        (["--size", "48x50"], "multiple of 32"),
    ],
)
def test_what_the_model_has_not_is_one_sentence(model: Path, options: list[str], said: str):
    done = run("tensorrt", model, *options)
    assert done.exit_code == 1
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_missing_runtime_is_one_sentence(model: Path, monkeypatch: pytest.MonkeyPatch):
    import sys

    monkeypatch.setitem(sys.modules, "tensorrt", None)
    done = run("tensorrt", model)
    assert done.exit_code == 1
    assert "pip install 'ptsa-serve[tensorrt]'" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_role_without_its_record_is_no_manifest(model: Path):
    text = json.loads((model / "manifest.json").read_text())
    text["files"][0]["role"] = "plan"
    with pytest.raises(Exception, match="has the field plan"):
        Manifest.from_json(json.dumps(text))


def test_arrays_of_every_weight_are_contiguous(tiny_artifact: Path):
    # The parser takes their addresses.
    for artifact, variant in variants(tiny_artifact):
        arrays = artifact.weights(variant).make(artifact.graph(variant).weights)
        assert all(array.flags.c_contiguous and isinstance(array, np.ndarray) for array in arrays.values())
