"""The wheel holds the runtime alone, with its page and the shipped model."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODELS_LIMIT = 24 * 2**20


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    # hatchling itself, without pip: no index is asked.
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = out.glob("*.whl")
    return zipfile.ZipFile(path)


def test_wheel_holds_the_runtime_alone(wheel: zipfile.ZipFile) -> None:
    tops = {name.partition("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"ptsa_serve"}


def test_wheel_holds_every_runtime_file(wheel: zipfile.ZipFile) -> None:
    files = [p for p in (ROOT / "ptsa_serve").rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    assert {p.relative_to(ROOT).as_posix() for p in files} <= set(wheel.namelist())


def test_wheel_holds_page_and_model(wheel: zipfile.ZipFile) -> None:
    names = wheel.namelist()
    assert any(name.startswith("ptsa_serve/ui/") and name.endswith(".html") for name in names)
    assert any(name.startswith("ptsa_serve/models/") and name.endswith("/manifest.json") for name in names)


def test_shipped_models_fit_the_limit() -> None:
    sizes = {p: p.stat().st_size for p in (ROOT / "ptsa_serve" / "models").rglob("*") if p.is_file()}
    assert 0 < sum(sizes.values()) <= MODELS_LIMIT


def test_command_is_installed_and_torch_is_not_required(wheel: zipfile.ZipFile) -> None:
    (info,) = {name.partition("/")[0] for name in wheel.namelist() if ".dist-info/" in name}
    assert "ptsa = ptsa_serve.cli:main" in wheel.read(f"{info}/entry_points.txt").decode()
    required = [
        line for line in wheel.read(f"{info}/METADATA").decode().splitlines() if line.startswith("Requires-Dist")
    ]
    assert required
    assert not [line for line in required if "torch" in line and "extra ==" not in line]
