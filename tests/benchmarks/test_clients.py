"""The load that benchmarks make: what counts, and what is asked."""

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from statistics import median

import pytest
from click.testing import CliRunner

from benchmarks.__main__ import main
from benchmarks.clients import closed_loop

CLIENTS, REQUESTS, SLOW = 3, 12, 1.0


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    """Its first answers, one for each client, take long; every fifth is a refusal. `bodies`: what was asked."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            with lock:
                bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
                number = len(bodies)
            time.sleep(SLOW if number <= CLIENTS else 0)
            answer = self.path.encode() * 10_000
            self.send_response(503 if number % 5 == 0 else 200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:
            del format, args

    lock = threading.Lock()
    bodies: list[bytes] = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.bodies = bodies  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_load_counts_answers_while_all_clients_are_busy(server) -> None:
    url = f"http://127.0.0.1:{server.server_port}/v1/predict?format=npz"
    load = closed_loop(url, b"the photo", clients=CLIENTS, requests=REQUESTS)
    assert len(load.seconds) == REQUESTS
    assert median(load.seconds) < SLOW
    assert load.rate > REQUESTS / SLOW
    assert all(b'name="image"' in body and b"\r\n\r\nthe photo\r\n--" in body for body in server.bodies)
    # One for each client before, and all but one of them still busy after.
    assert len(load.statuses) == len(server.bodies) == REQUESTS + 2 * CLIENTS - 1
    assert load.statuses.count(503) == len(server.bodies) // 5


def test_unknown_server_is_named_with_those_that_there_are() -> None:
    done = CliRunner().invoke(main, ["rivals", "--only", "ours,nobody"])
    assert str(done.exception) == "--only names 'nobody'; use some of ours, ours_as_chosen, fastapi, bentoml, litserve"
