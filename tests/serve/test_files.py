"""Whole or not at all, and nothing left behind."""

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
