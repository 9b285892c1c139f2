"""What lies in folders beside photos: said, never waited for, never taken for a photo."""

import os
import shutil
import socket
from pathlib import Path

import pytest

from ptsa_serve.photo_folders import SUFFIXES, find_photos

FEW = ("--render", "raw", "--tasks", "depth")


def names(source: Path) -> set[str]:
    return {str(name) for _, name in find_photos(source).photos}


@pytest.mark.parametrize("suffix", sorted(SUFFIXES | {".JPG", ".Jpeg", ".TIF"}))
def test_every_usual_suffix_is_a_photo(tmp_path: Path, suffix: str):
    (tmp_path / f"a{suffix}").write_bytes(b"")
    assert names(tmp_path) == {f"a{suffix}"}


def test_folder_named_like_a_photo_is_a_folder(ptsa, photo: Path, tmp_path: Path):
    (photo.parent / "x.jpg").mkdir()
    photo.rename(photo.parent / "x.jpg" / "y.jfif")
    result = ptsa("predict", photo.parent, tmp_path / "out", *FEW)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "out" / "x.jpg" / "y" / "depth.png").exists()


def test_what_is_skipped_is_told_with_the_reason(ptsa, photo: Path, tmp_path: Path):
    folder = photo.parent
    os.mkfifo(folder / "pipe.jpg")
    (folder / "zero.png").symlink_to("/dev/zero")
    (folder / "loop").symlink_to(".")
    (folder / ".git").mkdir()
    for name in (".hidden.jpg", "notes.txt", "IMG.HEIC", "Thumbs.db"):
        (folder / name).write_bytes(b"")
    # Its name would be too long for a socket anywhere else.
    before = Path.cwd()
    os.chdir(folder)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("sock.webp")
    os.chdir(before)
    result = ptsa("predict", folder, tmp_path / "out", *FEW)
    assert result.exit_code == 0, result.output
    assert "maps of 1 photo " in result.output
    for said in (
        "pipes, sockets or devices: 3 (pipe.jpg, sock.webp, zero.png)",
        "links to folders: 1 (loop)",
        "hidden: 2 (.git, .hidden.jpg)",
        "not named like a photo: 3 (.db, .heic, .txt)",
    ):
        assert said in result.output


def test_folder_without_photos_says_what_there_was_and_what_is_read(ptsa, tmp_path: Path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "IMG.HEIC").write_bytes(b"")
    result = ptsa("predict", tmp_path / "in", tmp_path / "out")
    assert result.exit_code == 1
    for said in ("not named like a photo: 1 (.heic)", "found no photo below", ".jpeg"):
        assert said in result.output


@pytest.mark.parametrize("what", ["pipe", "/dev/zero", "/dev/null"])
def test_pipe_or_device_that_is_named_is_refused_at_once(ptsa, tmp_path: Path, what: str):
    path = tmp_path / "photo.jpg"
    if what == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(what)
    result = ptsa("predict", path, tmp_path / "out")
    assert result.exit_code == 1
    assert "pipe, socket or device; save the photo to a file first" in result.output
    assert not (tmp_path / "out").exists()


def test_file_beyond_the_limit_is_not_read(ptsa, tmp_path: Path):
    with (tmp_path / "huge.jpg").open("wb") as file:
        file.truncate(2**40)
    result = ptsa("predict", tmp_path / "huge.jpg", tmp_path / "out")
    assert result.exit_code == 1
    assert f"the file has {2**40} bytes" in result.output


def test_broken_link_is_a_photo_that_failed(ptsa, photo: Path, tmp_path: Path):
    (photo.parent / "broken.jpg").symlink_to("nowhere")
    result = ptsa("predict", photo.parent, tmp_path / "out", *FEW)
    assert result.exit_code == 1
    assert "broken.jpg: the file cannot be read" in result.output
    assert "1 of 2 photos failed" in result.output


def test_folder_that_cannot_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # By a double, because the administrator may read everything.
    (tmp_path / "closed").mkdir()
    (tmp_path / "a.jpg").write_bytes(b"")
    real = os.scandir

    def scandir(path):
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    found = find_photos(tmp_path)
    assert [str(name) for _, name in found.photos] == ["a.jpg"]
    assert str(found) == "folders that cannot be read: 1 (closed)"


def test_names_that_are_no_text_are_done_and_shown_harmlessly(ptsa, photo: Path, tmp_path: Path):
    os.rename(photo, os.fsencode(photo.parent) + b"/b\xff\x1b[31m\n.jpg")  # noqa: PTH104 - Path takes no bytes
    (photo.parent / "broken\x1b.jpg").write_bytes(b"no photo")
    result = ptsa("predict", photo.parent, Path(os.fsdecode(os.fsencode(tmp_path) + b"/out\xfe")), *FEW)
    assert "broken\ufffd.jpg: found" in result.output
    assert "\x1b" not in result.output
    assert len(list(tmp_path.rglob("depth.png"))) == 1


@pytest.mark.parametrize("out", ["in/maps", "in"])
def test_maps_of_an_earlier_run_are_no_photos_wherever_they_went(ptsa, photo: Path, tmp_path: Path, out: str):
    assert ptsa("predict", photo, tmp_path / out).exit_code == 0
    result = ptsa("predict", photo.parent, tmp_path / "out", *FEW)
    assert "maps of 1 photo " in result.output
    assert "of an earlier run: 13" in result.output


@pytest.mark.parametrize("meta", ["[]", "{}", "", '{"model": 1, "photo": 1, "tasks": 1}', "[" * 5000])
def test_meta_json_of_somebody_else_hides_no_photo(tmp_path: Path, meta: str):
    (tmp_path / "meta.json").write_text(meta)
    (tmp_path / "depth.png").write_bytes(b"")
    assert names(tmp_path) == {"depth.png"}


def test_photo_that_is_named_is_done_whatever_its_name(ptsa, photo: Path, tmp_path: Path):
    shutil.copy(photo, tmp_path / "depth")
    assert ptsa("predict", tmp_path / "depth", tmp_path / "out", *FEW).exit_code == 0
