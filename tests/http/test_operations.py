"""What operators rely on: metrics, probes, drain, key, quota, log."""

import json
import logging
import threading
from pathlib import Path

import httpx
import pytest

from ptsa_serve.errors import PTSAError
from ptsa_serve.http.runtime import Runtime
from ptsa_serve.settings import Settings


def series(server) -> list[str]:
    lines = server.get("/metrics").text.splitlines()
    return [line.rsplit(" ", 1)[0] for line in lines if not line.startswith("#")]


def test_strangers_cannot_grow_the_metrics(server, photo_jpeg: bytes) -> None:
    def probe(first: int, last: int) -> None:
        with httpx.Client(base_url=server.url) as client:
            for number in range(first, last):
                client.get(f"/unknown/{number}")
                client.post(f"/v1/predict/task{number}")
                client.get(f"/v1/models/{number}")
                client.get(f"/ui/{number}")
                client.request(f"VERB{number}", "/v1/predict")

    server.photo(photo_jpeg)
    server.get("/metrics")
    probe(0, 3)
    before = series(server)
    probe(3, 43)
    assert sorted(series(server)) == sorted(before)


def test_metrics_tell_what_happened(serve, photo_jpeg: bytes) -> None:
    with serve() as server:
        server.photo(photo_jpeg)
        server.photo(b"garbage")
        text = server.get("/metrics").text
    assert 'ptsa_requests_total{method="POST",route="/v1/predict",status="200"} 1.0' in text
    assert 'ptsa_requests_total{method="POST",route="/v1/predict",status="400"} 1.0' in text
    assert 'ptsa_stage_duration_seconds_count{stage="model"} 1.0' in text
    assert 'ptsa_build_info{engine="scripted",model="ptsa-tiny@1"' in text
    assert "ptsa_ready 1.0" in text
    assert "ptsa_inflight 0.0" in text


def test_probes_are_green_when_the_model_is_ready(server) -> None:
    for path in ("/livez", "/readyz", "/healthz"):
        assert server.get(path).status_code == 200


def test_photos_before_the_model_is_ready_are_told_to_come_back(tiny_artifact: Path) -> None:
    runtime = Runtime(Settings.load({"PTSA_MODEL": str(tiny_artifact)}))
    assert (runtime.ready(), runtime.alive()) == (False, True)
    with pytest.raises(PTSAError) as caught:
        runtime.check_open()
    assert caught.value.code == "not-ready"
    assert caught.value.headers["Retry-After"] == "2"


def test_engine_that_does_not_reproduce_the_sample_never_serves(tiny_artifact: Path) -> None:
    from ptsa_serve.artifact import Artifact
    from ptsa_serve.engines import EngineOptions, load_engine
    from ptsa_serve.predictor import Predictor

    class Wrong:
        def __init__(self, inner) -> None:
            self.inner, self.name, self.version, self.closed = inner, "wrong", "1", False
            self.precision, self.branches, self.sizes, self.lanes = inner.precision, inner.branches, inner.sizes, 1

        def run(self, batch, tasks=None, *, alone=True):
            maps = self.inner.run(batch, tasks, alone=alone)
            return {name: values if name != "depth" else values * 2 for name, values in maps.items()}

        def close(self) -> None:
            self.closed = True

    artifact = Artifact.open(tiny_artifact)
    engine = Wrong(load_engine("onnxruntime", artifact, EngineOptions(threads=1)))
    runtime = Runtime(Settings.load({}), lambda settings: Predictor(artifact, engine, settings.limits()))
    with pytest.raises(PTSAError, match="depth"):
        runtime.start()
    assert engine.closed
    assert not runtime.ready()


@pytest.mark.parametrize("warm", ["all", "first"])
def test_sizes_beyond_the_first_are_loaded_at_the_start_or_when_needed(tiny_artifact: Path, monkeypatch, warm) -> None:
    from ptsa_serve.artifact import Artifact
    from ptsa_serve.engines import EngineOptions, load_engine
    from ptsa_serve.predictor import Predictor

    artifact = Artifact.open(tiny_artifact)
    engine = load_engine("onnxruntime", artifact, EngineOptions(threads=1))
    run, ran = engine.run, set()

    def seen(batch, *tasks, **options):
        ran.add(batch.shape[1:3])
        return run(batch, *tasks, **options)

    monkeypatch.setattr(engine, "run", seen)
    runtime = Runtime(Settings.load({"PTSA_WARM": warm}), lambda settings: Predictor(artifact, engine))
    runtime.start()
    runtime.close()
    first, *others = engine.sizes
    assert others
    assert ran == ({first, *others} if warm == "all" else {first})


def test_drain_file_takes_the_server_out_before_it_refuses(serve, photo_jpeg: bytes, tmp_path: Path, until) -> None:
    file = tmp_path / "drain"
    with serve(PTSA_DRAIN_FILE=str(file), PTSA_DRAIN_SECONDS="0.4") as server:
        assert server.get("/readyz").status_code == 200
        file.touch()
        answer = server.get("/readyz")
        assert (answer.status_code, answer.json()["code"]) == (503, "not-ready")
        assert server.photo(photo_jpeg).status_code == 200, "load balancers need a moment to notice"
        until(lambda: server.photo(photo_jpeg).status_code == 503)
        refused = server.photo(photo_jpeg)
        assert refused.json()["code"] == "shutting-down"
        assert int(refused.headers["Retry-After"]) >= 1
        file.unlink()
        assert server.photo(photo_jpeg).status_code == 200


def test_draining_server_finishes_what_it_holds(serve, photo_jpeg: bytes, until) -> None:
    with serve() as server:
        server.engine.gate.clear()
        held: list[httpx.Response] = []
        thread = threading.Thread(target=lambda: held.append(server.photo(photo_jpeg)))
        thread.start()
        until(lambda: len(server.engine.batches) == 1)
        server.runtime.drain()
        assert server.photo(photo_jpeg).json()["code"] == "shutting-down"
        assert server.get("/livez").status_code == 200
        server.engine.gate.set()
        thread.join()
        assert held[0].status_code == 200


@pytest.fixture(scope="module")
def locked(serve):
    with serve(PTSA_API_KEY="open-sesame") as running:
        yield running


@pytest.mark.parametrize("headers", [{}, {"X-API-Key": "wrong"}, {"Authorization": "Bearer wrong"},
                                     {"Authorization": "Basic open-sesame"}, {"X-API-Key": ""}])  # fmt: skip
@pytest.mark.parametrize("path", ["/v1/predict", "/v1/predict/depth", "/predict"])
def test_without_the_key_no_photo_is_taken(locked, photo_jpeg: bytes, headers: dict[str, str], path: str) -> None:
    answer = locked.post(path, content=photo_jpeg, headers={"Content-Type": "image/jpeg"} | headers)
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    assert "open-sesame" not in answer.text


@pytest.mark.parametrize("headers", [{"X-API-Key": "open-sesame"}, {"Authorization": "Bearer open-sesame"}])
def test_with_the_key_photos_are_taken(locked, photo_jpeg: bytes, headers: dict[str, str]) -> None:
    answer = locked.post("/v1/predict", content=photo_jpeg, headers={"Content-Type": "image/jpeg"} | headers)
    assert answer.status_code == 200


def test_key_guards_the_model_but_not_probes_and_page(locked) -> None:
    assert locked.get("/v1/models").status_code == 401
    for path in ("/livez", "/readyz", "/metrics", "/ui", "/problems/unauthorized"):
        assert locked.get(path).status_code == 200, path


def test_quota_refuses_with_429_and_a_time(serve, photo_jpeg: bytes) -> None:
    with serve(PTSA_QUOTA="2") as server:
        answers = [server.photo(photo_jpeg) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        assert answers[2].json()["code"] == "too-many-requests"
        assert 1 <= int(answers[2].headers["Retry-After"]) <= 30
        assert server.get("/v1/models").status_code == 200


def test_log_has_one_line_a_request_with_its_id(server, photo_jpeg: bytes, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "ptsa_serve.access"):
        server.photo(photo_jpeg, X_Request_Id="find-me")
        server.photo(b"garbage", "/v1/predict?tasks=depth", X_Request_Id="me-too")
        server.get("/livez")
    lines = [json.loads(record.message) for record in caplog.records if record.name == "ptsa_serve.access"]
    assert [(line["id"], line["status"], line["route"]) for line in lines] == [
        ("find-me", 200, "/v1/predict"),
        ("me-too", 400, "/v1/predict"),
    ]
    assert lines[0]["in"] == len(photo_jpeg)
    assert lines[0]["out"] > 1000
