import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from export.__main__ import main
from export.errors import ExportError
from export.options import parse_sizes

ROOT = Path(__file__).parents[2]


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, list(map(str, arguments)))


def test_sizes_are_heights_by_widths() -> None:
    assert parse_sizes("384x512,448x448") == ((384, 512), (448, 448))


@pytest.mark.parametrize("text", ["", "384", "384x", "384x500", "0x32", "32x32,32x32", "32x32;64x64"])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(ExportError, match="sizes are"):
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


def _no_graphs(*_: object) -> None:
    pytest.fail("it begins with the graphs, which take minutes")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--name", "my model"), "name is 'my model': String should match pattern"),
        (("--name", ""), "name is '': String should match"),
        (("--version", "1/2"), "version is '1/2': String should match"),
        (("--licence", "\udcff"), r"it is no text; write --note and --licence in UTF-8"),
        (("--sizes", "64x60"), "every side a multiple of 32"),
    ],
)
def test_what_no_manifest_may_hold_is_found_before_the_graphs(
    checkpoint: Path,
    photo: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.setattr("export.compile.build_graph", _no_graphs)
    done = run("compile", checkpoint, tmp_path / "out", "--sample", photo, "--photos", photo, *options)
    assert (done.exit_code, len(done.stderr.splitlines())) == (1, 1)
    assert message in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not JSON"),
        ("depth: 1", "is not JSON"),
        ('{"figures": {}}', "holds no list"),
        ("[1]", 'record 1 needs "figures": {name: number, ...}, found 1'),
        ('[{"figures": {"a": 1}}, {"data": "nyu"}]', "record 2 needs"),
        ('[{"figures": {"a": "good"}}]', "record 1 needs"),
        ('[{"figures": {"a": NaN}}]', "NaN is no number of JSON"),
        ('[{"figures": {"a": 1e999}}]', "record 1 needs"),
    ],
)
def test_figures_that_are_none_are_found_before_the_graphs(
    checkpoint: Path, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    monkeypatch.setattr("export.compile.build_graph", _no_graphs)
    metrics = tmp_path / "metrics.json"
    metrics.write_text(text)
    done = run("compile", checkpoint, tmp_path / "out", "--sample", photo, "--photos", photo, "--metrics", metrics)
    assert (done.exit_code, len(done.stderr.splitlines())) == (1, 1)
    assert message in done.stderr


def test_files_that_cannot_be_used_are_found_before_the_graphs(
    checkpoint: Path, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.compile.build_graph", _no_graphs)
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(photo.read_bytes()[:700])
    artifact = tmp_path / "artifact"
    artifact.mkdir()
    (artifact / "manifest.json").touch()
    inside = Path(shutil.copy(checkpoint, artifact))
    sample = Path(shutil.copy(photo, artifact / "mine.jpg"))
    for source, out, chosen, photos, message in (
        (checkpoint, tmp_path / "out", cut, photo, f"{cut}: the JPEG file is truncated"),
        (checkpoint, tmp_path / "out", photo, cut, f"{cut}: the JPEG file is truncated"),
        (checkpoint, cut / "out", photo, photo, f"{cut / 'out'} cannot be written: {cut}: Not a directory"),
        (inside, artifact, photo, photo, f"{inside} lies in {artifact}, which would be replaced"),
        (checkpoint, artifact, sample, photo, f"{sample} lies in {artifact}, which would be replaced"),
    ):
        done = run("compile", source, out, "--sample", chosen, "--photos", photos)
        assert (done.exit_code, len(done.stderr.splitlines())) == (1, 1)
        assert message in done.stderr
    assert inside.exists()
    assert sample.exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("error", [KeyError, ValueError])
def test_a_fault_of_ours_keeps_its_traceback(
    monkeypatch: pytest.MonkeyPatch, photo: Path, tmp_path: Path, error: type[Exception]
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise error("not the user's")

    monkeypatch.setattr("export.__main__.compile_artifact", broken)
    done = run("compile", photo, tmp_path / "out", "--sample", photo, "--photos", photo)
    assert isinstance(done.exception, error)


def test_it_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "export", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert {"compile", "unpack", "verify"} <= set(done.stdout.split())
