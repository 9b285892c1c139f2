import shutil
from pathlib import Path

import onnx_ir as ir
import pytest

from export.errors import ExportError, ParityError
from export.precision.files import merged
from export.precision.quantize import int8_artifact, sources
from export.recompile import recompile
from export.verify import sizes_to_check
from ptsa_serve.artifact import Artifact, write_artifact


def test_recompiling_changes_graphs_alone(tiny_artifact: Path, photo: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    artifact = recompile(tiny_artifact, tmp_path / "out", [photo], report=lines.append)
    before = Artifact.open(tiny_artifact)
    for record in before.manifest.files:
        same = (artifact.folder / record.path).read_bytes() == (tiny_artifact / record.path).read_bytes()
        assert same or record.role == "graph", record.path
    assert artifact.manifest.model_copy(update={"files": ()}) == before.manifest.model_copy(update={"files": ()})
    tasks, sizes = before.manifest.task_table(), before.manifest.input.sizes
    assert sum("before against after" in line for line in lines) == len(tasks) * len(sizes)


def test_recompiling_in_place_twice_is_recompiling_once(tiny_artifact: Path, photo: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_artifact, folder)
    once = recompile(folder, folder, [photo]).manifest.files
    assert recompile(folder, folder, [photo]).manifest.files == once


def test_graphs_that_say_something_else_are_not_written(
    tiny_artifact: Path, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(model: ir.Model) -> None:
        for node in model.graph:
            if node.op_type == "Sigmoid":
                node.op_type = "Tanh"

    monkeypatch.setattr("export.recompile.quicken", wrong)
    with pytest.raises(ParityError, match="before against after"):
        recompile(tiny_artifact, tmp_path / "out", [photo])
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_refused(tiny_artifact: Path, photo: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "letter.txt").write_text("dear")
    with pytest.raises(ExportError, match="is no artifact"):
        recompile(tiny_artifact, tmp_path / "out", [photo])


def test_every_size_of_a_graph_of_any_size_is_compared(any_size_artifact: Path, photo: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    artifact = recompile(any_size_artifact, tmp_path / "out", [photo], report=lines.append)
    sizes = sizes_to_check(artifact.variants.sizes(artifact.variants.form()))
    assert len(sizes) > len(artifact.manifest.input.sizes)
    found = [line for line in lines if "before against after" in line]
    assert len(found) == len(artifact.manifest.task_table()) * len(sizes)


def test_forms_of_fewer_bits_are_compared_too(
    tiny_artifact: Path, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fp32 = Artifact.open(tiny_artifact)
    files = merged(fp32, int8_artifact(sources(fp32, [photo], tmp_path / "sources"), (), fp32))
    write_artifact(tmp_path / "int8", fp32.manifest, files)

    def wrong(model: ir.Model) -> None:
        """Only what is quantized is harmed."""
        if any(node.op_type == "QuantizeLinear" for node in model.graph):
            for node in model.graph:
                if node.op_type == "Sigmoid":
                    node.op_type = "Tanh"

    monkeypatch.setattr("export.recompile.quicken", wrong)
    with pytest.raises(ParityError, match=r"int8 folded at .*: saliency is off by"):
        recompile(tmp_path / "int8", tmp_path / "out", [photo], photo_count=1)
    assert not (tmp_path / "out").exists()
