"""The client where something else answers, or nothing can: its own errors, each with what was found and what to do."""

import http.server
import io
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate

import numpy as np
import pytest

from ptsa_serve.client import AnswerError, Client, UnreachableError
from ptsa_serve.errors import BadImage, Internal, PTSAError, SettingsError

Answer = tuple[int, dict[str, str], bytes]


class _Scripted(http.server.BaseHTTPRequestHandler):
    """Gives the same answer to every request, and keeps what was asked."""

    answers: dict[str, Answer]
    asked: list[tuple[str, str | None]]

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.asked.append((self.path, self.headers.get("Authorization")))
        status, headers, body = self.answers.get(self.path.partition("?")[0], self.answers["*"])
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def answering() -> Iterator[Callable[..., tuple[str, list]]]:
    """`answering(answer, {path: answer})` starts a server; gives its address and the list of what it was asked."""
    made = []

    def start(answer: Answer, others: dict[str, Answer] | None = None) -> tuple[str, list]:
        asked: list[tuple[str, str | None]] = []
        handler = type("Handler", (_Scripted,), {"answers": {"*": answer, **(others or {})}, "asked": asked})
        made.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler))
        threading.Thread(target=made[-1].serve_forever, args=(0.01,), daemon=True).start()
        return f"http://127.0.0.1:{made[-1].server_address[1]}", asked

    yield start
    for server in made:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


def npz(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


OURS = {"X-Photo": "width=4; height=3; orientation=1", "X-Model": "m@1"}
MAPS = npz(depth=np.ones((3, 4), np.float32))
MODELS = (200, {}, json.dumps({"models": [{"tasks": [{"name": "depth", "kind": "metres", "unit": "m"}]}]}).encode())


@pytest.mark.parametrize(
    "answer",
    [
        (200, {"Content-Type": "text/html"}, b"<html>Please log in</html>"),
        (200, {}, b""),
        (204, {}, b""),
        (200, OURS, MAPS[: len(MAPS) // 2]),
        (200, OURS, MAPS[:100] + b"\0" * 20 + MAPS[120:]),
        (200, {"X-Model": "m@1"}, MAPS),
        (200, {"X-Photo": OURS["X-Photo"]}, MAPS),
        (200, {**OURS, "X-Photo": "none"}, MAPS),
        (200, OURS, npz()),
        (200, OURS, npz(depth=np.float32(1))),
        (200, OURS, b"[]"),
        (200, OURS, npz(depth=np.array([{}], dtype=object))),
    ],
)
def test_answer_without_maps_is_told_with_what_came(answering, answer: Answer) -> None:
    url, _ = answering(answer, {"/v1/models": MODELS})
    with Client(url) as client, pytest.raises(AnswerError, match=f"answered with no maps.*{answer[0]}.*check"):
        client.predict(b"photo")


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"[]", b"{}", b"null", b'{"models": 3}', b'{"models": [3]}', b"\xff\xfe"]
)
def test_answer_without_models_is_told(answering, body: bytes) -> None:
    url, _ = answering((200, {}, body))
    with Client(url) as client, pytest.raises(AnswerError, match="no list of models"):
        client.models()


@pytest.mark.parametrize("models", [[], [{}], [{"tasks": 3}], [{"tasks": [{"name": "depth"}]}], [{"tasks": []}]])
def test_maps_that_the_models_do_not_explain_are_told(answering, models: list) -> None:
    url, _ = answering((200, OURS, MAPS), {"/v1/models": (200, {}, json.dumps({"models": models}).encode())})
    with Client(url) as client, pytest.raises(AnswerError, match="does not say what depth is"):
        client.predict(b"photo")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirect_is_told_and_the_key_stays_here(answering, status: int) -> None:
    other, asked = answering((200, {}, b""))
    url, _ = answering((status, {"Location": f"{other}/login"}, b""))
    with Client(url, api_key="open-sesame") as client, pytest.raises(AnswerError, match=f"{status}.*{other}/login"):
        client.predict(b"photo")
    assert asked == []


def test_answer_of_the_wrong_shape_with_an_error_status_is_internal(answering) -> None:
    for body in (b'{"code": [], "detail": 1}', b'["code"]', b"<html>", b""):
        url, _ = answering((404, {}, body))
        with Client(url) as client, pytest.raises(Internal, match="404"):
            client.models()
    url, _ = answering((400, {}, b'{"code": "bad-image", "detail": "no", "allowed": 5}'))
    with Client(url) as client, pytest.raises(BadImage):
        client.models()


@pytest.mark.parametrize(
    ("name", "value"),
    [("ALL_PROXY", "socks5://127.0.0.1:9"), ("HTTP_PROXY", "socks4://127.0.0.1:9"), ("HTTP_PROXY", "127.0.0.1:abc")],
)
def test_proxy_that_cannot_be_used_is_told(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UnreachableError, match=r"proxy.*NO_PROXY"):
        Client("http://127.0.0.1:3000")


@pytest.mark.parametrize("no_proxy", ["[::1]", "::1,127.0.0.1", "127.0.0.1", "a b,ü,%,/", "[::1]:3000", "fe80::/10"])
@pytest.mark.parametrize("proxy", ["", "socks5://127.0.0.1:9"])
def test_odd_entries_for_other_hosts_do_no_harm(
    answering, monkeypatch: pytest.MonkeyPatch, no_proxy: str, proxy: str
) -> None:
    url, _ = answering(MODELS)
    monkeypatch.setenv("NO_PROXY", no_proxy)
    if proxy and "127.0.0.1" in no_proxy:
        monkeypatch.setenv("ALL_PROXY", proxy)
    with Client(url) as client:
        assert len(client.models()) == 1


def test_ipv6_server_is_reached_past_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    class V6(http.server.ThreadingHTTPServer):
        address_family = socket.AF_INET6

    handler = type("Handler", (_Scripted,), {"answers": {"*": MODELS}, "asked": []})
    try:
        server = V6(("::1", 0), handler)
    except OSError:
        pytest.skip("no IPv6 here")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        for entry in ("[::1]", "::1"):
            monkeypatch.setenv("NO_PROXY", entry)
            with Client(f"http://[::1]:{server.server_address[1]}") as client:
                assert len(client.models()) == 1
        server.shutdown()


def test_proxy_of_the_environment_is_used(answering, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy, asked = answering(MODELS)
    monkeypatch.setenv("HTTP_PROXY", proxy.removeprefix("http://"))
    with Client("http://photos.invalid/api/") as client:
        assert len(client.models()) == 1
    assert asked[0][0] == "http://photos.invalid/api/v1/models"


@pytest.mark.parametrize("prefix", ["", "/", "/prefix", "/prefix/"])
def test_path_of_a_proxy_is_kept(answering, prefix: str) -> None:
    url, asked = answering(MODELS)
    with Client(url + prefix) as client:
        client.models()
    assert asked[0][0] == f"{prefix.rstrip('/')}/v1/models"


@pytest.mark.parametrize(
    "url", ["localhost:3000", "127.0.0.1", "", "/v1", "ftp://x", "http://", "http://a:b", "http://[::1", "http://a\n"]
)
def test_address_that_is_none_is_told_with_how_to_write_it(url: str) -> None:
    with pytest.raises(UnreachableError, match="write it like http://localhost:3000"):
        Client(url)


def test_password_in_an_address_is_not_told() -> None:
    with Client("http://user:secret@127.0.0.1:9") as client, pytest.raises(UnreachableError) as caught:
        client.models()
    assert "secret" not in str(caught.value)


def test_key_of_a_file_loses_its_line_end(answering) -> None:
    url, asked = answering(MODELS)
    with Client(url, api_key="open-sesame\r\n") as client:
        client.models()
    assert asked[0][1] == "Bearer open-sesame"


@pytest.mark.parametrize("key", ["schlüssel", "a\nb", " \n", "\x00abc", "ключ"])
def test_key_that_no_header_can_carry_is_refused(key: str) -> None:
    with pytest.raises(SettingsError, match="API key"):
        Client("http://127.0.0.1:9", api_key=key)


@pytest.mark.parametrize("wrong", [{"retries": -1}, {"timeout": 0}, {"timeout": -3.0}, {"timeout": float("nan")}])
def test_patience_that_is_none_is_refused(wrong: dict) -> None:
    with pytest.raises(SettingsError, match="retries is"):
        Client("http://127.0.0.1:9", **wrong)


@pytest.mark.parametrize("deadline", [0, -1])
def test_deadline_that_is_none_is_the_servers_to_refuse(server, photo_jpeg: bytes, deadline: int) -> None:
    with Client(server.url) as client, pytest.raises(PTSAError, match="X-Deadline-Ms"):
        client.predict(photo_jpeg, deadline_ms=deadline)


@pytest.mark.parametrize(("seconds", "waited"), [(30, 30), (-100, 0)])
def test_date_to_come_back_at_is_waited_for(
    answering, monkeypatch: pytest.MonkeyPatch, seconds: int, waited: int
) -> None:
    waits: list[float] = []
    monkeypatch.setattr("ptsa_serve.client.time.sleep", waits.append)
    body = b'{"code": "overloaded", "detail": "full"}'
    url, _ = answering((503, {"Retry-After": formatdate(time.time() + seconds, usegmt=True)}, body))
    with Client(url, retries=1) as client, pytest.raises(PTSAError):
        client.models()
    assert len(waits) == 1
    assert waited - 2 <= waits[0] <= waited * 1.1


@pytest.mark.parametrize(
    "sent", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf", b"SSH-2.0-OpenSSH_9.6\r\n"]
)
def test_server_that_dies_midway_or_speaks_otherwise_is_unreachable(sent: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(sent)

        threading.Thread(target=answer, daemon=True).start()
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        with Client(address, timeout=5) as client, pytest.raises(UnreachableError, match=address):
            client.predict(b"photo")
