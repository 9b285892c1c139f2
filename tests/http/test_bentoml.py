"""The service as operators run it: `bentoml serve` in processes of its own, with torch forbidden in all of them."""

import contextlib
import hashlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest

ROOT = Path(__file__).parents[2]

# Python imports this module at the start of every process that finds it: supervisor and worker alike.
FORBID = """
import sys

class Forbid:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "timm", "onnxscript", "training", "export", "benchmarks"):
            raise ImportError("forbidden here: " + name)

sys.meta_path.insert(0, Forbid())
"""


@dataclass
class Process:
    """A `bentoml serve` of its own."""

    url: str
    popen: subprocess.Popen[str]
    log: Path
    client: httpx.Client

    def photo(self, data: bytes, path: str = "/v1/predict") -> httpx.Response:
        return self.client.post(path, content=data, headers={"Content-Type": "image/jpeg"})

    def stop(self, seconds: float = 15) -> int:
        self.popen.send_signal(signal.SIGTERM)
        return self.popen.wait(seconds)


@pytest.fixture(scope="module")
def environ(tmp_path_factory: pytest.TempPathFactory, tiny_artifact: Path) -> dict[str, str]:
    """The environment of a server: nothing of ours from outside, torch forbidden, BentoML's files in a folder."""
    folder = tmp_path_factory.mktemp("bento")
    (folder / "sitecustomize.py").write_text(FORBID)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PTSA_", "BENTO", "COV"))}
    return {
        **kept,
        "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}",
        "BENTOML_HOME": str(folder / "home"),
        "PTSA_MODEL": str(tiny_artifact),
        "PTSA_THREADS": "1",
        "PTSA_ENGINE": "onnxruntime",
    }


def command(port: int) -> list[str]:
    serve = ["serve", "ptsa_serve.service:Service", "--host", "127.0.0.1", "--port", str(port)]
    return [sys.executable, "-m", "bentoml", *serve]


@contextlib.contextmanager
def serving(environ: dict[str, str], log: Path, port: int) -> Iterator[Process]:
    with log.open("w") as out:
        popen = subprocess.Popen(command(port), cwd=log.parent, env=environ, stdout=out, stderr=out, text=True)
    url = f"http://127.0.0.1:{port}"
    try:
        with httpx.Client(base_url=url, timeout=20) as client:
            process = Process(url, popen, log, client)
            wait_ready(process)
            yield process
    finally:
        if popen.poll() is None:
            popen.terminate()
            popen.wait(20)


def wait_ready(process: Process) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        assert process.popen.poll() is None, process.log.read_text()
        with contextlib.suppress(httpx.HTTPError):
            if process.client.get("/readyz", timeout=1).status_code == 200:
                return
        time.sleep(0.05)
    raise AssertionError(process.log.read_text())


@pytest.fixture(scope="module")
def bento(environ: dict[str, str], tmp_path_factory: pytest.TempPathFactory, free_port) -> Iterator[Process]:
    with serving(environ, tmp_path_factory.mktemp("log") / "serve.log", free_port()) as process:
        yield process


def test_torch_is_forbidden_in_the_processes_of_these_tests(environ: dict[str, str]) -> None:
    for name in ("torch", "onnxscript", "training"):
        done = subprocess.run(
            [sys.executable, "-c", f"import {name}"], env=environ, capture_output=True, text=True, check=False
        )
        assert "forbidden here" in done.stderr


def test_photo_is_answered_through_bentoml(bento: Process, photo_jpeg: bytes) -> None:
    answer = bento.photo(photo_jpeg)
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "application/zip")
    assert answer.headers["X-Model"] == "ptsa-tiny@1"
    assert "model;dur=" in answer.headers["Server-Timing"]


def test_every_request_is_answered_from_the_moment_the_port_opens(
    environ: dict[str, str], tmp_path: Path, photo_jpeg: bytes, free_port
) -> None:
    port, log = free_port(), tmp_path / "serve.log"
    with log.open("w") as out:
        popen = subprocess.Popen(command(port), cwd=tmp_path, env=environ, stdout=out, stderr=out, text=True)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:
            process = Process(str(client.base_url), popen, log, client)
            while not answers(port):
                assert popen.poll() is None, log.read_text()
                time.sleep(0.01)
            # What comes first must not wait for the worker, which takes seconds to be there.
            for path in ("/v1/predict", "/predict"):
                early = process.photo(photo_jpeg, path)
                assert (early.status_code, early.json()["code"]) == (503, "not-ready")
                assert int(early.headers["Retry-After"]) >= 1
            assert client.get("/livez").status_code == 200
            assert client.get("/readyz").status_code == 503
            assert client.get("/ui").status_code == 200
            wait_ready(process)
            assert process.photo(photo_jpeg).status_code == 200
    finally:
        popen.terminate()
        popen.wait(20)


def answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def test_start_is_told_with_address_model_and_limits(bento: Process) -> None:
    log = bento.log.read_text()
    assert f"{bento.url}/v1/predict" in log
    assert "ptsa-tiny@1 serves segmentation, depth, normals, saliency" in log
    assert "PTSA_MAX_BYTES=20971520" in log


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not-found"),
        ("GET", "/v1/predict", 405, "method-not-allowed"),
        ("POST", "/readyz", 405, "method-not-allowed"),
        ("GET", "/predict", 405, "method-not-allowed"),
        ("POST", "/v1/predict/dept", 404, "unknown-task"),
        ("POST", "/v1/predict", 400, "missing-image"),
        ("POST", "/predict", 400, "missing-image"),
        ("POST", "/predict?x=1", 422, "bad-parameter"),
    ],
)
def test_refusals_are_problems_whoever_makes_them(
    bento: Process, method: str, path: str, status: int, code: str
) -> None:
    answer = bento.client.request(method, path)
    assert (answer.status_code, answer.headers["Content-Type"]) == (status, "application/problem+json"), answer.text
    assert answer.json()["code"] == code
    assert answer.json()["request_id"] == answer.headers["X-Request-Id"]


def test_bentoml_api_takes_both_kinds_of_body_and_gives_arrays(bento: Process, photo_jpeg: bytes) -> None:
    multipart = bento.client.post("/predict", files={"image": ("a.png", photo_jpeg, "image/png")})
    raw = bento.photo(photo_jpeg, "/predict")
    assert multipart.status_code == raw.status_code == 200
    assert multipart.content == raw.content
    assert np.array(raw.json()["normals"]).shape == (240, 320, 3)
    assert raw.headers["X-Model"] == "ptsa-tiny@1"


def test_bentoml_api_refuses_as_the_contract_says(bento: Process, photo_jpeg: bytes) -> None:
    def code(answer: httpx.Response) -> str:
        assert answer.headers["Content-Type"] == "application/problem+json"
        return answer.json()["code"]

    assert code(bento.photo(b"garbage", "/predict")) == "bad-image"
    assert code(bento.photo(photo_jpeg[:2000], "/predict")) == "bad-image"
    assert code(bento.client.post("/predict", data={"image": "http://127.0.0.1:9/x"})) == "unsupported-media-type"
    assert code(bento.client.post("/predict", files={"image": (None, "http://127.0.0.1:9/x")})) == "missing-image"
    assert code(bento.client.post("/predict", json={"image": "x"})) == "unsupported-media-type"
    assert code(bento.photo(b"x" * (21 * 2**20), "/predict")) == "too-large"
    late = bento.client.post("/predict", content=photo_jpeg, headers={"X-Deadline-Ms": "soon"})
    assert code(late) == "bad-parameter"


# In a process of its own: BentoML and what it imports warn of one another's deprecated names.
BENTO_CLIENT = """
import pathlib, sys
import bentoml, numpy as np

with bentoml.SyncHTTPClient(sys.argv[1]) as client:
    assert client.is_ready()
    np.savez(sys.argv[3], **client.call("predict", image=pathlib.Path(sys.argv[2])))
"""


def test_bentomls_own_client_gets_arrays(bento: Process, environ, photo_jpeg: bytes, tmp_path: Path) -> None:
    photo, maps = tmp_path / "photo.jpg", tmp_path / "maps.npz"
    photo.write_bytes(photo_jpeg)
    command = [sys.executable, "-c", BENTO_CLIENT, bento.url, str(photo), str(maps)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answer = bento.photo(photo_jpeg, "/v1/predict?format=npz")
    with np.load(maps, allow_pickle=False) as found, np.load(io.BytesIO(answer.content)) as expected:
        assert found["segmentation"].dtype == np.uint8
        assert set(found.files) == set(expected.files)
        for name in found.files:
            np.testing.assert_allclose(found[name], expected[name], atol=1e-6)


def test_our_client_gets_predictions(bento: Process, photo_jpeg: bytes) -> None:
    from ptsa_serve.client import Client

    with Client(bento.url) as client:
        assert client.ready()
        assert client.predict(photo_jpeg).maps["depth"].shape == (240, 320)


def test_schema_page_and_metrics_are_there(bento: Process) -> None:
    assert "/predict" in bento.client.get("/docs.json").json()["paths"]
    assert bento.client.get("/ui").status_code == 200
    metrics = bento.client.get("/metrics").text
    assert "ptsa_ready 1.0" in metrics
    assert "bentoml_" not in metrics


# The configuration as the worker has it when it makes the app.
TRACED = """
from ptsa_serve.service import Service
from bentoml._internal.configuration.containers import BentoMLContainer

Service.inject_config()
print(not BentoMLContainer.tracing_excluded_urls.get().url_disabled("http://127.0.0.1:3000/v1/predict"))
"""
EXPORTER = "services: {ptsa-serve: {tracing: {exporter_type: in_memory, sample_rate: 1.0, excluded_urls: []}}}"


@pytest.mark.parametrize(("config", "traced"), [(None, "False"), (EXPORTER, "True")])
def test_spans_are_made_only_for_an_exporter(environ, tmp_path: Path, config: str | None, traced: str) -> None:
    more = {}
    if config:
        (tmp_path / "bentoml.yaml").write_text(config)
        more["BENTOML_CONFIG"] = str(tmp_path / "bentoml.yaml")
    command = [sys.executable, "-c", TRACED]
    done = subprocess.run(command, env=environ | more, capture_output=True, text=True, check=False)
    assert done.stdout.split()[-1:] == [traced], done.stderr


def test_unknown_paths_do_not_grow_the_metrics(bento: Process) -> None:
    def lines() -> int:
        return len(bento.client.get("/metrics").text.splitlines())

    def probe(numbers: range) -> None:
        for number in numbers:
            bento.client.get(f"/unknown/{number}")
            bento.client.post(f"/v1/predict/{number}")

    probe(range(1))
    lines()
    before = lines()
    probe(range(1, 41))
    assert lines() == before


@pytest.mark.slow
def test_memory_does_not_grow_with_requests(
    environ: dict[str, str], tmp_path: Path, free_port, photo_jpeg: bytes
) -> None:
    # BentoML keeps 6 kB of each request until its own timeout, here 6 seconds: less than the first round takes.
    with serving(environ | {"PTSA_TIMEOUT_MS": "1000"}, tmp_path / "log", free_port()) as process:
        worker = max(psutil.Process(process.popen.pid).children(recursive=True), key=lambda p: p.memory_info().rss)
        resident = []
        for _ in range(2):
            for _ in range(4000):
                assert process.photo(photo_jpeg, "/v1/predict?size=model").status_code == 200
            resident.append(worker.memory_info().rss / 1e6)
        assert resident[1] - resident[0] < 4


def upload(url: str, photo: bytes) -> tuple[socket.socket, Callable[[], bytes]]:
    """A connection with half a photo sent, and what sends the rest and gives the answer's first line."""
    address = httpx.URL(url)
    connection = socket.create_connection((address.host, address.port))
    head = f"POST /v1/predict/depth HTTP/1.1\r\nHost: x\r\nContent-Length: {len(photo)}\r\n\r\n"
    connection.sendall(head.encode() + photo[:100])

    def finish() -> bytes:
        connection.sendall(photo[100:])
        connection.settimeout(30)
        return connection.recv(65536).split(b"\r\n")[0]

    return connection, finish


def test_sigterm_refuses_new_photos_and_finishes_the_old(
    environ, tmp_path: Path, photo_jpeg: bytes, until, free_port
) -> None:
    with serving(environ, tmp_path / "serve.log", free_port()) as process:
        connection, finish = upload(process.url, photo_jpeg)
        with connection:
            until(lambda: "ptsa_inflight 1.0" in process.client.get("/metrics").text)
            process.popen.send_signal(signal.SIGTERM)
            until(lambda: httpx.get(f"{process.url}/readyz", timeout=20).status_code == 503)
            refused = httpx.post(
                f"{process.url}/v1/predict", content=photo_jpeg, headers={"Content-Type": "image/jpeg"}, timeout=20
            )
            assert (refused.status_code, refused.json()["code"]) == (503, "shutting-down")
            assert int(refused.headers["Retry-After"]) >= 1
            assert finish() == b"HTTP/1.1 200 OK"
        assert process.popen.wait(40) == 0
        assert "Traceback" not in process.log.read_text()


def ends(environ: dict[str, str], folder: Path, **more: str) -> str:
    """What a server that cannot start says; it must end by itself, soon, with status 1 and no traceback."""
    done = subprocess.run(
        command(0), cwd=folder, env=environ | more, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    return done.stderr


def test_missing_model_ends_the_process_with_one_sentence(environ: dict[str, str], tmp_path: Path) -> None:
    said = ends(environ, tmp_path, PTSA_MODEL=str(tmp_path / "none"))
    assert said.count("ptsa-serve cannot start") == 1
    assert "none" in said


def test_wrong_settings_end_the_process_with_all_faults(environ: dict[str, str], tmp_path: Path) -> None:
    said = ends(environ, tmp_path, PTSA_QUEUE="-1", PTSA_QEUE="3")
    assert "PTSA_QUEUE is '-1'" in said
    assert "PTSA_QEUE" in said


def test_changed_model_ends_the_process(environ: dict[str, str], tmp_path: Path, tiny_artifact: Path) -> None:
    model = shutil.copytree(tiny_artifact, tmp_path / "model")
    with (model / "weights.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x55")
    assert "weights.safetensors" in ends(environ, tmp_path, PTSA_MODEL=str(model))


def test_fault_that_only_the_worker_finds_ends_the_supervisor_too(
    environ: dict[str, str], tmp_path: Path, tiny_artifact: Path
) -> None:
    model = shutil.copytree(tiny_artifact, tmp_path / "model")
    with np.load(model / "sample.npz") as file:
        maps = dict(file)
    maps["depth"] = maps["depth"] + 1
    out = io.BytesIO()
    np.savez(out, **maps)
    (model / "sample.npz").write_bytes(out.getvalue())
    manifest = json.loads((model / "manifest.json").read_text())
    for record in manifest["files"]:
        if record["path"] == "sample.npz":
            record |= {"bytes": len(out.getvalue()), "sha256": hashlib.sha256(out.getvalue()).hexdigest()}
    (model / "manifest.json").write_text(json.dumps(manifest))
    assert "does not reproduce" in ends(environ, tmp_path, PTSA_MODEL=str(model))
