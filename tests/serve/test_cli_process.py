"""`ptsa` as a process: hostile folders, signals, full disks, closed pipes, homes that cannot be written."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parents[2]
PTSA = [sys.executable, "-m", "ptsa_serve"]
# Modules of Python, of what we use, and of ours, and what tools look for in a project.
HOSTILE = (
    "random",
    "http",
    "json",
    "re",
    "socket",
    "numpy",
    "onnxruntime",
    "bentoml",
    "click",
    "service",
    "usercustomize",
)
FILES = {
    "bentofile.yaml": "service: 'service:svc'\n",
    "pyproject.toml": "[tool.bentoml.build]\nservice = 'service:svc'\n",
    ".env": "PTSA_QUEUE=3\n",
    "bentoml_configuration.yaml": "version: 1\n",
}  # fmt: skip


@pytest.fixture
def environ(tiny_artifact: Path, tmp_path: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PTSA_", "BENTO", "COV"))}
    ours = {"PYTHONPATH": str(ROOT), "PTSA_MODEL": str(tiny_artifact), "PTSA_THREADS": "1"}
    return kept | ours | {"BENTOML_HOME": str(tmp_path / "home")}


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A folder whose modules leave a trace when they run."""
    folder = tmp_path / "hostile"
    # BentoML would look for a bento by the name of our service.
    (folder / "ptsa_serve.service:Service").mkdir(parents=True)
    for name in HOSTILE:
        (folder / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'a').write(__name__ + ' ')\n")
    for name, text in FILES.items():
        (folder / name).write_text(text)
        (folder / "ptsa_serve.service:Service" / name).write_text(text)
    return folder


@contextlib.contextmanager
def serving(
    command: list[str], cwd: Path, environ: dict[str, str], port: int, log: Path
) -> Iterator[tuple[str, subprocess.Popen]]:
    with log.open("w") as out:
        process = subprocess.Popen(command, cwd=cwd, env=environ, stdout=out, stderr=out)
    url = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            assert process.poll() is None, log.read_text()
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{url}/readyz", timeout=1, trust_env=False).status_code == 200:
                    break
            time.sleep(0.05)
        yield url, process
    finally:
        process.terminate()
        process.wait(30)


def test_nothing_of_the_current_folder_runs_in_a_server(
    environ: dict[str, str], hostile: Path, tmp_path: Path, free_port, photo_jpeg: bytes, tiny_artifact: Path
):
    port = free_port()
    shutil.copytree(tiny_artifact, hostile / "model")
    # Without a home folder, and with a path relative to this one.
    environ |= {"PTSA_MODEL": "model", "BENTOML_HOME": "/proc/none", "HOME": "/proc/none"}
    command = [*PTSA, "serve", "--host", "localhost", "--port", str(port)]
    with serving(command, hostile, environ, port, tmp_path / "log") as (url, _):
        answer = httpx.post(
            f"{url}/v1/predict", content=photo_jpeg, headers={"Content-Type": "image/jpeg"}, trust_env=False
        )
        assert (answer.status_code, answer.headers["X-Model"]) == (200, "ptsa-tiny@1")
    assert not (tmp_path / "ran").exists(), (tmp_path / "ran").read_text()
    log = (tmp_path / "log").read_text()
    assert "PTSA_QUEUE=64" in log
    assert "Traceback" not in log


@pytest.mark.parametrize("command", [PTSA, [sys.executable, str(ROOT / "ptsa_serve")]])
@pytest.mark.parametrize("arguments", [["predict", "{photo}", "{out}", "--tasks", "depth"], ["info"]])
def test_nothing_of_the_current_folder_runs_in_a_command(
    environ: dict[str, str], hostile: Path, tmp_path: Path, photo: Path, command: list[str], arguments: list[str]
):
    given = [argument.format(photo=photo, out=tmp_path / "out") for argument in arguments]
    done = subprocess.run([*command, *given], cwd=hostile, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "ran").exists(), (tmp_path / "ran").read_text()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_predict_leaves_whole_files_alone(
    environ: dict[str, str], tmp_path: Path, photo: Path, until, number: int, status: int
):
    for index in range(300):
        (photo.parent / f"{index:03}.jpg").hardlink_to(photo)
    command = [*PTSA, "predict", str(photo.parent), str(tmp_path / "out")]
    with subprocess.Popen(
        command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # A job in the background (of CI, say) ignores SIGINT, and its children with it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:  # fmt: skip
        until(lambda: (tmp_path / "out" / "002").exists())
        process.send_signal(number)
        said = process.communicate(timeout=30)[1]
    assert process.returncode == status
    assert "Traceback" not in said
    written = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert not [path for path in written if path.name.startswith(".") or not path.stat().st_size]
    assert not (tmp_path / "out" / "299").exists()


@pytest.mark.parametrize("arguments", [["info"], ["--help"], ["serve", "--help"], ["predict", "{photo}", "{out}"]])
def test_full_disk_under_the_output_is_one_sentence(
    environ: dict[str, str], tmp_path: Path, photo: Path, arguments: list[str]
):
    given = [argument.format(photo=photo, out=tmp_path / "out") for argument in arguments]
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = subprocess.run([*PTSA, *given], env=environ, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip() == "Error: No space left on device"


def test_closed_pipe_is_no_traceback(environ: dict[str, str]):
    done = subprocess.run(
        ["sh", "-c", '"$@" | head -n 1', "sh", *PTSA, "info"], env=environ, capture_output=True, text=True, check=False
    )
    assert done.stdout.startswith("ptsa-tiny@1")
    assert done.stderr == ""


def test_help_of_serve_lists_every_setting_with_its_range_and_default(ptsa):
    from ptsa_serve.settings import Settings

    text = " ".join(ptsa("serve", "--help").output.split())
    for name, field in Settings.model_fields.items():
        assert f"PTSA_{name.upper()} {field.description}" in text
    assert "[1 to 100000; default: 64]" in text
    assert "[one of: auto, onnxruntime, " in text
    assert "[one of: fp32, fp16, bf16, int8]" in text
