import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from export.__main__ import main, parse_sizes

ROOT = Path(__file__).parents[2]


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, list(map(str, arguments)))


def test_sizes_are_heights_by_widths() -> None:
    assert parse_sizes("384x512,448x448") == ((384, 512), (448, 448))


@pytest.mark.parametrize("text", ["", "384", "384x", "384x500", "0x32", "32x32,32x32", "32x32;64x64"])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="sizes are"):
        parse_sizes(text)


def test_a_file_that_is_no_checkpoint_is_one_clear_line(photo: Path, tmp_path: Path) -> None:
    done = run("compile", photo, tmp_path / "out", "--sample", photo, "--photos", photo)
    assert done.exit_code == 1
    assert done.stderr.startswith(f"Error: {photo} is no ptsa checkpoint")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_an_empty_folder_of_photos_is_one_clear_line(photo: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = run("compile", photo, tmp_path / "out", "--sample", photo, "--photos", tmp_path / "empty")
    assert done.exit_code == 1
    assert "no JPEG below" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_unpacking_what_is_no_artifact_is_one_clear_line(tmp_path: Path) -> None:
    done = run("unpack", tmp_path, tmp_path / "out")
    assert done.exit_code == 1
    assert "has no manifest.json" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, photo: Path, tmp_path: Path) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError("not the user's")

    monkeypatch.setattr("export.__main__.compile_artifact", broken)
    done = run("compile", photo, tmp_path / "out", "--sample", photo, "--photos", photo)
    assert isinstance(done.exception, KeyError)


def test_it_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "export", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert {"compile", "unpack", "verify"} <= set(done.stdout.split())
