"""`bentoml build` makes a whole bento without any network, and the bento serves."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import httpx
import pytest
import yaml

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def packages() -> list[str]:
    return yaml.safe_load((ROOT / "bentofile.yaml").read_text())["python"]["packages"]


def test_bento_asks_for_what_the_package_asks_for(packages: list[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["cpu"], *extras["openvino"]]
    names = {re.split(r"[<>=!\[]", requirement)[0] for requirement in wanted}
    assert {package.partition("==")[0] for package in packages} == names


def test_bento_is_pinned_to_the_versions_tested_together(packages: list[str]) -> None:
    pinned = (ROOT / "constraints.txt").read_text().splitlines()
    assert [package for package in packages if package not in pinned] == []


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The folder of a new bento, and the environment without network in which it was built."""
    home = tmp_path_factory.mktemp("bento-home")
    nowhere = dict.fromkeys(
        ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy"), "http://127.0.0.1:9"
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PTSA_", "BENTO", "COV"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environ = (
        kept | nowhere | {"UV_OFFLINE": "1", "BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "true", "PATH": path}
    )
    done = subprocess.run(
        [sys.executable, "-m", "bentoml", "build", "."],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (folder,) = (path for path in (home / "bentos" / "ptsa-serve").iterdir() if path.is_dir())
    return folder, environ


def test_bento_holds_the_runtime_and_nothing_else(built: tuple[Path, dict[str, str]]) -> None:
    source = built[0] / "src"
    assert {path.name for path in source.iterdir()} == {"ptsa_serve", "bentofile.yaml"}
    kept = {
        p.relative_to(ROOT) for p in (ROOT / "ptsa_serve").rglob("*") if p.is_file() and "__pycache__" not in p.parts
    }
    assert kept == {path.relative_to(source) for path in (source / "ptsa_serve").rglob("*") if path.is_file()}


def test_bento_serves(
    built: tuple[Path, dict[str, str]], tiny_artifact: Path, free_port, photo_jpeg: bytes, until
) -> None:
    folder, environ = built
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "bentoml", "serve", str(folder), "--host", "127.0.0.1", "--port", str(port)]
    with subprocess.Popen(
        command, env=environ | {"PTSA_MODEL": str(tiny_artifact)}, cwd=folder, stdout=subprocess.DEVNULL
    ) as process:
        try:
            with httpx.Client(base_url=url, trust_env=False) as client:
                until(lambda: _ready(client), 60)
                answer = client.post("/v1/predict", content=photo_jpeg, headers={"Content-Type": "image/jpeg"})
                assert answer.status_code == 200
        finally:
            process.terminate()


def _ready(client: httpx.Client) -> bool:
    try:
        return client.get("/readyz", timeout=1).status_code == 200
    except httpx.HTTPError:
        return False
