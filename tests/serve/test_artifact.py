"""Model folders: read with proof, written whole or not at all, weights folded as said."""

import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from ptsa_serve import artifact as module
from ptsa_serve.artifact import Artifact, ArtifactFile, external_layout, write_artifact
from ptsa_serve.errors import ArtifactError, ManifestError


@pytest.fixture
def copy(tiny_artifact: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_artifact, tmp_path / "copy"))


def test_open_reads_what_was_written(tiny_artifact: Path):
    artifact = Artifact.open(tiny_artifact)
    assert artifact.manifest.name == "ptsa-tiny"
    assert [variant.size for variant in artifact.variants.all] == [(48, 64), (64, 48), (56, 56)]
    photo, maps = artifact.sample()
    assert photo[:3] == b"\xff\xd8\xff"
    assert maps["normals"].shape == (48, 64, 3)


def test_no_folder_and_no_manifest_say_which(tmp_path: Path):
    with pytest.raises(ArtifactError, match="is not a folder"):
        Artifact.open(tmp_path / "nowhere")
    with pytest.raises(ArtifactError, match=r"has no manifest\.json"):
        Artifact.open(tmp_path)


def test_manifest_of_another_version_names_the_folder(copy: Path):
    (copy / "manifest.json").write_text('{"format": "ptsa/2"}')
    with pytest.raises(ManifestError, match=r"copy.*'ptsa/2'.*install"):
        Artifact.open(copy)


@pytest.mark.parametrize("name", ["model-48x64.onnx", "weights.safetensors", "sample.jpg", "sample.npz"])
def test_every_file_is_checked(copy: Path, name: str):
    path = copy / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=f"{name} was changed.*copy the folder again"):
        Artifact.open(copy)
    path.write_bytes(data[:-1])
    with pytest.raises(ArtifactError, match=f"{name} has {len(data) - 1} bytes"):
        Artifact.open(copy)
    path.unlink()
    with pytest.raises(ArtifactError, match=f"{name} is missing"):
        Artifact.open(copy)
    assert Artifact.open(copy, verify=False).manifest.version == "1"


def test_unknown_size_lists_the_sizes(tiny_artifact: Path):
    variants = Artifact.open(tiny_artifact).variants
    with pytest.raises(ArtifactError, match=r"no fp32 folded graph for \(1, 2\); it takes 48x64, 64x48 or 56x56"):
        variants.choose(variants.form(), (1, 2), ["depth"])


def test_external_data_is_read_by_any_runtime(tiny_artifact: Path, tmp_path: Path):
    artifact = Artifact.open(tiny_artifact)
    artifact.write_external_data(tmp_path / "standard")
    session = onnxruntime.InferenceSession(
        tmp_path / "standard" / "model-48x64.onnx", providers=["CPUExecutionProvider"]
    )
    pixels = np.random.default_rng(0).integers(0, 256, (2, 48, 64, 3), dtype=np.uint8)
    from ptsa_serve.engines import EngineOptions, load_engine

    expected = load_engine("onnxruntime", artifact, EngineOptions(threads=1)).run(pixels)
    for name, values in zip(expected, session.run(list(expected), {"image": pixels}), strict=True):
        assert np.allclose(values, expected[name], atol=1e-5)


def test_package_without_a_model_says_how_to_name_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "__file__", str(tmp_path / "artifact.py"))
    with pytest.raises(ArtifactError, match="PTSA_MODEL"):
        module.default_artifact()


def test_layout_is_aligned_and_without_overlap():
    layout = external_layout({"a": 3, "b": 64, "c": 65, "d": 1})
    assert list(layout.values()) == [(0, 3), (64, 64), (128, 65), (256, 1)]


def test_folder_is_written_whole_or_not_at_all(tiny_artifact: Path, copy: Path, monkeypatch: pytest.MonkeyPatch):
    before = sorted((path.name, path.read_bytes()) for path in copy.iterdir())
    artifact = Artifact.open(copy)
    files = [
        ArtifactFile(r.path, r.role, b"new", r.model_dump(include={"height", "width"})) for r in artifact.manifest.files
    ]
    written = []

    def fail_late(path: Path, data: bytes) -> None:
        path.write_bytes(data)
        written.append(path)
        if len(written) == 3:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_file", fail_late)
    with pytest.raises(OSError, match="No space"):
        write_artifact(copy, artifact.manifest, files)
    assert sorted((path.name, path.read_bytes()) for path in copy.iterdir()) == before
    assert [path.name for path in copy.parent.iterdir()] == ["copy"]


def test_older_folder_is_replaced(copy: Path):
    artifact = Artifact.open(copy)
    files = [
        ArtifactFile(r.path, r.role, (copy / r.path).read_bytes(), r.model_dump(include={"height", "width"}))
        for r in artifact.manifest.files
    ]
    (copy / "stray.txt").write_text("from before")
    again = write_artifact(copy, artifact.manifest.model_copy(update={"version": "2"}), files)
    assert again.manifest.version == "2"
    assert not (copy / "stray.txt").exists()
    assert [path.name for path in copy.parent.iterdir()] == ["copy"]


def test_missing_graph_is_refused_before_anything_is_written(tiny_artifact: Path, tmp_path: Path):
    manifest = Artifact.open(tiny_artifact).manifest
    with pytest.raises(ManifestError, match=r"input\.sizes"):
        write_artifact(tmp_path / "out", manifest, [ArtifactFile("weights.safetensors", "weights", b"")])
    assert not (tmp_path / "out").exists()
