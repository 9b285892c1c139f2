"""The client against a real server: the same maps as the library, the server's errors by class, patience with 503."""

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ptsa_serve.client import Client, UnreachableError
from ptsa_serve.errors import (
    BadImage,
    BadParameter,
    DeadlineExceeded,
    Internal,
    Overloaded,
    TooLarge,
    Unauthorized,
)


@pytest.fixture
def client(server) -> Iterator[Client]:
    with Client(server.url) as made:
        yield made


def test_prediction_is_that_of_the_library(server, client: Client, photo_jpeg: bytes) -> None:
    expected, found = server.runtime.predictor.predict(photo_jpeg), client.predict(photo_jpeg)
    assert list(found.maps) == list(expected.maps)
    for name, values in expected.maps.items():
        np.testing.assert_array_equal(found.maps[name], values)
    assert (found.tasks, found.photo, found.size, found.model) == (
        expected.tasks,
        expected.photo,
        expected.size,
        expected.model,
    )
    assert {"decode", "queue", "model", "encode"} == found.timings_ms.keys()


def test_file_and_choice_of_tasks(client: Client, photo_jpeg: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(photo_jpeg)
    found = client.predict(path, tasks=["normals", "depth"], size="model")
    assert list(found.maps) == ["depth", "normals"]
    assert found.size == (48, 64)
    assert (found.photo.width, found.photo.height) == (320, 240)


def test_errors_come_by_class_with_what_the_server_said(client: Client, photo_jpeg: bytes) -> None:
    with pytest.raises(BadImage, match="no image"):
        client.predict(b"garbage")
    with pytest.raises(TooLarge, match="limit"):
        client.predict(b"x" * (21 * 2**20))
    with pytest.raises(BadParameter) as caught:
        client.predict(photo_jpeg, tasks=["dept"])
    assert (caught.value.parameter, caught.value.allowed[1]) == ("tasks", "depth")


def test_deadline_is_passed_on(serve, photo_jpeg: bytes) -> None:
    with serve() as server, Client(server.url) as client:
        server.engine.gate.clear()
        with pytest.raises(DeadlineExceeded):
            client.predict(photo_jpeg, deadline_ms=50)


def test_key_is_sent(serve, photo_jpeg: bytes) -> None:
    with serve(PTSA_API_KEY="open-sesame") as server:
        with Client(server.url, api_key="open-sesame") as client:
            assert client.predict(photo_jpeg).size == (240, 320)
        with Client(server.url) as client, pytest.raises(Unauthorized):
            client.predict(photo_jpeg)


def test_server_that_is_not_there_is_unreachable() -> None:
    with Client("http://127.0.0.1:9") as client:
        assert not client.ready()
        with pytest.raises(UnreachableError, match=r"127\.0\.0\.1:9"):
            client.models()


def test_ready_and_models(client: Client) -> None:
    assert client.ready()
    assert client.models()[0]["name"] == "ptsa-tiny"


class _Scripted(http.server.BaseHTTPRequestHandler):
    """Answers from a list, then with an empty list of models."""

    script: list[tuple[int, dict[str, str], bytes]]

    def do_GET(self) -> None:
        status, headers, body = self.script.pop(0) if self.script else (200, {}, b'{"models": []}')
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def scripted() -> Iterator[tuple[str, list]]:
    handler = type("Handler", (_Scripted,), {"script": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{made.server_address[1]}", handler.script
        made.shutdown()


def refusal(wait: str) -> tuple[int, dict[str, str], bytes]:
    return 503, {"Retry-After": wait}, json.dumps({"code": "overloaded", "detail": "full"}).encode()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits that the client would make."""
    made: list[float] = []
    monkeypatch.setattr("ptsa_serve.client.time.sleep", made.append)
    return made


def test_refused_client_waits_as_told_and_tries_again(scripted, waits: list[float]) -> None:
    url, script = scripted
    script += [refusal("3"), refusal("1")]
    with Client(url) as client:
        assert client.models() == []
    assert 3 <= waits[0] <= 3.3
    assert 1 <= waits[1] <= 1.1


def test_patience_ends_and_the_error_says_when_to_come_back(scripted, waits: list[float]) -> None:
    url, script = scripted
    script += [refusal("2")] * 5
    with Client(url, retries=1) as client, pytest.raises(Overloaded) as caught:
        client.models()
    assert len(waits) == 1
    assert caught.value.retry_after == 2


def test_very_long_wait_is_the_callers_decision(scripted, waits: list[float]) -> None:
    url, script = scripted
    script += [refusal("3600")]
    with Client(url) as client, pytest.raises(Overloaded):
        client.models()
    assert waits == []


def test_answer_of_a_proxy_is_an_error_with_its_status(scripted, waits: list[float]) -> None:
    url, script = scripted
    script += [(502, {}, b"<html>bad gateway</html>")]
    with Client(url) as client, pytest.raises(Internal, match="502"):
        client.models()
