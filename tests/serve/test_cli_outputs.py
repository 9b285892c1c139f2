"""Where maps may go: never over what is read, and refused before anything is written."""

import shutil
from pathlib import Path

import pytest

from ptsa_serve import predict_files
from ptsa_serve.predict_files import check_outputs, file_names, plan


@pytest.fixture
def here(tmp_path: Path, photo_jpeg: bytes, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with depth.png, a.jpg and a/depth.png, photos all."""
    (tmp_path / "a").mkdir()
    for name in ("depth.png", "a.jpg", "a/depth.png"):
        (tmp_path / name).write_bytes(photo_jpeg)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def state(folder: Path) -> dict[str, bytes | None]:
    paths = {path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()}
    return {str(path): path.read_bytes() for path in paths}


@pytest.mark.parametrize(
    "arguments",
    [
        ["depth.png", "."],
        ["./depth.png", "../{name}"],
        ["link.jpg", "."],
        ["depth.png", "here"],
        ["depth.png", "hard"],
        ["depth.png", "soft"],
        ["hard/depth.png", "."],
        ["a.jpg", "a/depth.png", "."],
        ["a.jpg", "a", "."],
        ["meta.json", "."],
        ["maps.npz", ".", "--format", "npz"],
        ["maps.zip", ".", "--format", "zip"],
        ["depth.color.png", ".", "--render", "color"],
        ["normals.overlay.png", ".", "--render", "overlay", "--tasks", "normals"],
    ],
    ids=" ".join,
)
def test_output_over_an_input_is_refused_before_anything_is_written(ptsa, here: Path, arguments: list[str]):
    for name in ("meta.json", "maps.npz", "maps.zip", "depth.color.png", "normals.overlay.png"):
        shutil.copy(here / "depth.png", here / name)
    for name in ("hard", "soft"):
        (here / name).mkdir()
    (here / "hard" / "depth.png").hardlink_to(here / "depth.png")
    (here / "soft" / "depth.png").symlink_to("../depth.png")
    (here / "link.jpg").symlink_to("depth.png")
    (here / "here").symlink_to(".")
    before = state(here)
    result = ptsa("predict", *(argument.format(name=here.name) for argument in arguments))
    assert result.exit_code == 1
    assert "would replace" in result.output
    assert "name another folder" in result.output
    assert state(here) == before


def test_name_in_other_letters_is_seen_through(here: Path, monkeypatch: pytest.MonkeyPatch):
    # A file system that takes Depth.png and depth.png for one name answers for both with the same file.
    (here / "Depth.png").hardlink_to(here / "depth.png")
    (job,) = plan([here / "Depth.png"], here)
    with pytest.raises(ValueError, match="would replace"):
        check_outputs([job], ["depth.png"], here / "a")


def test_model_that_is_read_is_not_replaced(ptsa, here: Path, tiny_artifact: Path):
    model = Path(shutil.copytree(tiny_artifact, here / "model"))
    (model / "maps.npz").hardlink_to(model / "sample.npz")
    result = ptsa("predict", here / "a.jpg", model, "--format", "npz", "--model", model)
    assert result.exit_code == 1
    assert "sample.npz, which is read" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.jpg", "file"], "is a file"),
        (["a.jpg", "file/below"], "file is no folder"),
        (["a.jpg", "/dev/null"], "/dev/null is no folder"),
        (["a.jpg", "nowhere"], "nowhere is no folder"),
        (["a.jpg", "taken"], "taken/depth.png is in the way"),
        (["a.jpg", "device"], "device/depth.png is in the way"),
        (["a.jpg", "depth.png", "deep"], "deep/a is no folder"),
        (["a.jpg", ""], "the name is empty"),
    ],
)
def test_what_is_in_the_way_is_named_before_anything_is_written(ptsa, here: Path, arguments: list[str], message: str):
    (here / "file").write_text("of the user")
    (here / "nowhere").symlink_to("not/there")
    (here / "taken" / "depth.png").mkdir(parents=True)
    (here / "device").mkdir()
    (here / "device" / "depth.png").symlink_to("/dev/null")
    (here / "deep").mkdir()
    (here / "deep" / "a").write_text("of the user")
    before = state(here)
    result = ptsa("predict", *arguments)
    assert result.exit_code in (1, 2)
    assert message in result.output
    assert state(here) == before


def test_own_names_of_an_earlier_run_are_replaced_and_others_stay(ptsa, here: Path):
    for _ in range(2):
        assert ptsa("predict", "a.jpg", "out", "--render", "raw").exit_code == 0
        (here / "out" / "notes.txt").write_text("of the user")
    assert (here / "out" / "notes.txt").read_text() == "of the user"


@pytest.mark.parametrize(
    ("photos", "outs"),
    [
        (["a.jpg", "a.png", "b.jpg"], ["a.jpg", "a.png", "b"]),
        (["a.jpg", "a/depth.png"], ["a.jpg", "a/depth"]),
        (["a.jpg", "a/b/c.png"], ["a.jpg", "a/b/c"]),
        (["a.jpg", "a.png", "a.jpg.png"], ["a.jpg", "a.png", "a.jpg.png"]),
        (["A.jpg", "a.png"], ["A.jpg", "a.png"]),
        (["a.jpg", "a/depth.png", "a/depth.jpg"], ["a.jpg", "a/depth.png", "a/depth.jpg"]),
    ],
)  # fmt: skip
def test_every_photo_of_a_folder_gets_a_folder_of_its_own(tmp_path: Path, photos: list[str], outs: list[str]):
    for name in photos:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(b"")
    jobs = plan([tmp_path / "in"], tmp_path / "out")
    assert {str(job.out.relative_to(tmp_path / "out")) for job in jobs} == set(outs)
    check_outputs(jobs, file_names(["depth"], ["raw"], "png"), tmp_path)


def test_photos_and_maps_of_one_name_are_refused(tmp_path: Path):
    for name in ("x/a.jpg", "x/a.png", "y/a.jpg/depth.png.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    jobs = plan([tmp_path / "x", tmp_path / "y"], tmp_path / "out")
    with pytest.raises(ValueError, match="a map and a folder of maps"):
        check_outputs(jobs, ["depth.png"], tmp_path)


def test_photo_named_twice_is_done_once(ptsa, here: Path):
    assert (
        "maps of 2 photos" in ptsa("predict", "a.jpg", "./a.jpg", "a", "a/depth.png", "out", "--tasks", "depth").output
    )


def test_names_that_differ_in_case_alone_are_refused_where_the_file_system_takes_them_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    photos = [tmp_path / "x" / "A.jpg", tmp_path / "y" / "a.jpg"]
    assert len(plan(photos, tmp_path)) == 2
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(predict_files, "_folds_case", lambda out: True)
    with pytest.raises(ValueError, match="would both go to"):
        plan(photos, tmp_path)


def test_folder_above_the_photos_is_a_place_for_maps(ptsa, here: Path):
    assert "maps of 1 photo " in ptsa("predict", "a", ".", "--tasks", "depth", "--render", "raw").output
    assert (here / "depth" / "depth.png").exists()
