"""`ptsa`: what it writes, and that a mistake ends with one clear sentence."""

import json
import os
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ptsa_serve import cli
from ptsa_serve.predict_files import plan
from ptsa_serve.tasks import TASKS


def test_one_photo_gives_values_colours_overlays_and_meta(ptsa, photo: Path, tmp_path: Path):
    result = ptsa("predict", photo, tmp_path / "out")
    assert result.exit_code == 0, result.output
    names = {f"{task}{kind}.png" for task in TASKS for kind in ("", ".color", ".overlay")} | {"meta.json"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    with Image.open(tmp_path / "out" / "depth.png") as depth:
        assert depth.size == (320, 240)
        assert np.asarray(depth).dtype == np.uint16
    assert list(json.loads((tmp_path / "out" / "meta.json").read_text())["tasks"]) == list(TASKS)


def test_tasks_render_and_size_choose(ptsa, photo: Path, tmp_path: Path):
    out = tmp_path / "out"
    assert ptsa("predict", photo, out, "--tasks", "depth,normals", "--render", "raw", "--size", "model").exit_code == 0
    assert {path.name for path in out.iterdir()} == {"depth.png", "normals.png", "meta.json"}
    with Image.open(out / "depth.png") as depth:
        assert depth.size == (64, 48)


@pytest.mark.parametrize("form", ["npz", "zip"])
def test_arrays_and_archives(ptsa, photo: Path, tmp_path: Path, form: str):
    assert ptsa("predict", photo, tmp_path / "out", "--format", form).exit_code == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {f"maps.{form}", "meta.json"}
    if form == "npz":
        with np.load(tmp_path / "out" / "maps.npz") as maps:
            assert maps["normals"].shape == (240, 320, 3)


def test_folder_gives_a_folder_each_and_goes_on_after_a_bad_photo(ptsa, photo: Path, tmp_path: Path):
    (photo.parent / "deep").mkdir()
    shutil.copy(photo, photo.parent / "deep" / "hall.jpeg")
    (photo.parent / "broken.png").write_bytes(b"no image")
    (photo.parent / "notes.txt").write_text("not a photo")
    result = ptsa("predict", photo.parent, tmp_path / "out", "--render", "raw", "--tasks", "depth")
    assert result.exit_code == 1
    assert "broken.png: found 8 bytes that are no image" in result.output
    assert "1 of 3 photos failed" in result.output
    found = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.png")}
    assert found == {"kitchen/depth.png", "deep/hall/depth.png"}


def test_photos_that_differ_in_suffix_alone_keep_it(tmp_path: Path):
    photos = [tmp_path / "a.jpg", tmp_path / "a.png", tmp_path / "b.jpg"]
    assert [job.out.name for job in plan(photos, tmp_path)] == ["a.jpg", "a.png", "b"]


def test_maps_of_an_earlier_run_are_no_photos(ptsa, photo: Path):
    for _ in range(2):
        result = ptsa("predict", photo.parent, photo.parent / "maps", "--render", "raw", "--tasks", "depth")
        assert "maps of 1 photo " in result.output


def test_folder_of_the_photos_is_refused_for_the_maps(ptsa, photo: Path):
    result = ptsa("predict", photo.parent, photo.parent)
    assert result.exit_code == 1
    assert "name another folder for the maps" in result.output
    assert [path.name for path in photo.parent.iterdir()] == ["kitchen.jpg"]


def test_photos_of_one_name_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="would both go to"):
        plan([tmp_path / "x" / "a.jpg", tmp_path / "y" / "a.jpg"], tmp_path)


def test_other_files_in_the_folder_stay(ptsa, photo: Path):
    assert ptsa("predict", photo, photo.parent, "--render", "raw").exit_code == 0
    assert photo.exists()
    assert (photo.parent / "depth.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "depht"], "there is no task 'depht'; use one of: segmentation, depth"),
        (["--engine", "magic"], "PTSA_ENGINE is 'magic'; use one of: auto, onnxruntime"),
        (["--model", "/nowhere"], "is not a folder; name a folder that"),
        (["--render", "raw", "--format", "npz"], "Leave one of them out"),
    ],
)
def test_mistakes_end_with_one_sentence(ptsa, photo: Path, tmp_path: Path, arguments: list[str], message: str):
    result = ptsa("predict", photo, tmp_path / "out", *arguments)
    assert result.exit_code in (1, 2)
    assert message in result.output
    assert not (tmp_path / "out").exists()


def test_empty_folder_says_so(ptsa, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    result = ptsa("predict", tmp_path / "empty", tmp_path / "out")
    assert result.exit_code == 1
    assert "found no photo below" in result.output


def test_wrong_setting_is_named(ptsa, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PTSA_THREADS", "many")
    result = ptsa("info")
    assert result.exit_code == 1
    assert "PTSA_THREADS is 'many'" in result.output


def test_info_describes_the_model_for_people_and_programs(ptsa):
    text = ptsa("info")
    assert text.exit_code == 0
    for part in ("ptsa-tiny@1", "39 classes", "stage 2", "parameters", "onnxruntime"):
        assert part in text.output
    document = json.loads(ptsa("info", "--json").output)
    assert document["name"] == "ptsa-tiny"
    assert set(document["sample_error"]) == set(TASKS)


def test_serve_becomes_bentoml_with_the_flags_as_settings(ptsa, monkeypatch: pytest.MonkeyPatch):
    started = []
    monkeypatch.setattr(os, "execve", lambda *call: started.append(call))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    assert ptsa("serve", "--port", port, "--threads", 1).exit_code == 0
    _, arguments, environ = started[0]
    assert arguments[1:5] == ["-m", "bentoml", "serve", cli.SERVICE]
    assert arguments[-4:] == ["--host", "127.0.0.1", "--port", str(port)]
    assert environ["PTSA_THREADS"] == "1"


def test_serve_names_a_service_that_exists():
    module, name = cli.SERVICE.split(":")
    source = Path(cli.__file__).parent.parent / (module.replace(".", "/") + ".py")
    assert f"class {name}:" in source.read_text()


def test_serve_on_a_taken_port_says_so_before_it_starts(ptsa, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "execve", lambda *call: pytest.fail("started"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = ptsa("serve", "--port", taken.getsockname()[1])
    assert result.exit_code == 1
    assert "choose another with --port" in result.output


def damaged(folder: Path, what: str) -> None:
    if what == "graph":
        (folder / "model-48x64.onnx").write_bytes(b"damaged")
    elif what == "version":
        (folder / "manifest.json").write_text('{"format": "ptsa/9"}')
    else:
        (folder / "manifest.json").unlink()


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("graph", "model-48x64.onnx has 7 bytes"),
        ("version", "'ptsa/9', this ptsa-serve reads"),
        ("gone", "has no manifest"),
    ],
)
def test_serve_checks_the_model_before_it_starts(
    ptsa, tiny_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, message: str
):
    monkeypatch.setattr(os, "execve", lambda *call: pytest.fail("started"))
    folder = Path(shutil.copytree(tiny_artifact, tmp_path / "model"))
    damaged(folder, what)
    result = ptsa("serve", "--model", folder, "--port", 39_217)
    assert result.exit_code == 1
    assert message in result.output
    assert len(result.output.strip().splitlines()) == 1


def test_help_of_every_command_shows_an_example(ptsa):
    assert "ptsa predict photo.jpg maps/" in ptsa("--help").output
    for name in ("predict", "serve"):
        assert f"ptsa {name} " in ptsa(name, "--help").output
