"""Whole or not at all, and nothing left behind."""

import errno
import os
import stat
from pathlib import Path

import pytest

from ptsa_serve import files
from ptsa_serve.files import replace_file, replace_folder, write_file


def test_file_is_replaced(tmp_path: Path):
    replace_file(tmp_path / "a" / "b.txt", b"one")
    replace_file(tmp_path / "a" / "b.txt", b"two")
    assert [(path.name, path.read_bytes()) for path in (tmp_path / "a").iterdir()] == [("b.txt", b"two")]


def test_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    replace_file(tmp_path / "b.txt", b"one")

    def fail(path: Path, data: bytes) -> None:
        path.write_bytes(data[:1])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "write_file", fail)
    with pytest.raises(OSError, match="No space"):
        replace_file(tmp_path / "b.txt", b"two")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("b.txt", b"one")]


@pytest.mark.parametrize("there", [False, True])
def test_folder_appears_only_when_it_is_whole(tmp_path: Path, there: bool):
    out = tmp_path / "out"
    if there:
        write_file(out / "old", b"old")

    def fail() -> None:
        with replace_folder(out) as folder:
            write_file(folder / "new", b"new")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        fail()
    assert [path.name for path in tmp_path.rglob("*")] == (["out", "old"] if there else [])
    with replace_folder(out) as folder:
        write_file(folder / "new", b"new")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["new", "out"]


@pytest.fixture(params=[0o022, 0o077, 0o002])
def umask(request: pytest.FixtureRequest):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_new_files_and_folders_have_the_mode_that_the_umask_gives(tmp_path: Path, umask: int):
    replace_file(tmp_path / "a" / "b.txt", b"one")
    with replace_folder(tmp_path / "out") as folder:
        write_file(folder / "c.txt", b"two")
    assert {mode(tmp_path / name) for name in ("a/b.txt", "out/c.txt")} == {0o666 & ~umask}
    assert {mode(tmp_path / name) for name in ("a", "out")} == {0o777 & ~umask}


def test_replaced_files_and_folders_keep_their_mode(tmp_path: Path):
    replace_file(tmp_path / "b.txt", b"one")
    (tmp_path / "b.txt").chmod(0o600)
    replace_file(tmp_path / "b.txt", b"two")
    (tmp_path / "out").mkdir(mode=0o750)
    with replace_folder(tmp_path / "out") as folder:
        write_file(folder / "new", b"new")
    assert (mode(tmp_path / "b.txt"), mode(tmp_path / "out")) == (0o600, 0o750)


@pytest.mark.parametrize("there", [False, True])
def test_file_system_without_modes_and_fsync_is_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool
):
    def refuse(number: int):
        def fail(*arguments: object, **options: object) -> None:
            raise OSError(number, os.strerror(number))

        return fail

    if there:
        replace_file(tmp_path / "b.txt", b"one")
    for name in ("chmod", "fchmod"):
        monkeypatch.setattr(os, name, refuse(errno.EPERM))
    monkeypatch.setattr(os, "fsync", refuse(errno.EINVAL))
    replace_file(tmp_path / "b.txt", b"two")
    with replace_folder(tmp_path / "out") as folder:
        write_file(folder / "c.txt", b"three")
    found = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*"))
    assert found == ["b.txt", "out", "out/c.txt"]
    assert (tmp_path / "b.txt").read_bytes() == b"two"


def test_disk_that_fails_while_syncing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(handle: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output"):
        replace_file(tmp_path / "b.txt", b"one")
    assert list(tmp_path.iterdir()) == []


def test_longest_names_are_written(tmp_path: Path):
    replace_file(tmp_path / ("ü" * 127), b"one")
    with replace_folder(tmp_path / ("x" * 255)):
        pass
    assert len(list(tmp_path.iterdir())) == 2
