"""`--out` replaces an older measurement, and no other file."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.__main__ import main


@pytest.mark.parametrize("question", ["graph", "requests", "load", "memory"])
def test_figures_replace_no_file_of_another_kind(photo_jpeg: bytes, tmp_path: Path, question: str) -> None:
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(photo_jpeg)
    done = CliRunner().invoke(main, [question, "--out", str(photo)])
    assert done.exit_code == 2
    assert "holds no measurement; name a new file" in " ".join(done.output.split())
    assert photo.read_bytes() == photo_jpeg


@pytest.mark.parametrize("name", ["photo.jpg", "link.jpg"])
def test_contact_sheet_never_replaces_a_photo(photo_jpeg: bytes, tmp_path: Path, name: str) -> None:
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(photo_jpeg)
    (tmp_path / "link.jpg").symlink_to(photo)
    done = CliRunner().invoke(main, ["picture", str(photo), "--out", str(tmp_path / name)])
    assert done.exit_code == 2
    assert photo.read_bytes() == photo_jpeg
