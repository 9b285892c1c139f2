"""What requests hold of the memory, from their first byte until their answer is sent or dropped."""

import contextlib
import io
import socket
import threading
import time
from collections.abc import Iterator

import httpx
import psutil
import pytest
from PIL import Image


def make_jpeg(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.radial_gradient("L").resize((width, height)).convert("RGB").save(file, "JPEG")
    return file.getvalue()


@pytest.fixture(scope="module")
def large() -> bytes:
    """3 megapixels: 63 MB of arrays, more than any socket buffers."""
    return make_jpeg(2000, 1500)


def ask(server, path: str, photo: bytes) -> socket.socket:
    """A connection that has sent its photo and reads nothing."""
    address = httpx.URL(server.url)
    connection = socket.create_connection((address.host, address.port))
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: {len(photo)}\r\n\r\n"
    connection.sendall(head.encode() + photo)
    return connection


def held(server) -> float:
    text = server.get("/metrics").text
    return float(next(line for line in text.splitlines() if line.startswith("ptsa_memory_held_bytes ")).split()[1])


def test_memory_is_held_until_the_answer_is_taken(serve, large: bytes) -> None:
    with serve() as server, contextlib.closing(ask(server, "/v1/predict?format=npz", large)) as connection:
        # The arrays are there when the head of the answer is; their bytes alone are held from then on.
        connection.settimeout(30)
        assert connection.recv(15) == b"HTTP/1.1 200 OK"
        arrays = 2000 * 1500 * (1 + 4 + 12 + 4)
        assert arrays < held(server) < arrays + 2**16
        while held(server):
            assert connection.recv(2**20)


def test_client_that_does_not_read_is_dropped_and_others_are_served_meanwhile(
    serve, large: bytes, photo_jpeg: bytes, until
) -> None:
    with serve(PTSA_MEMORY_MIB="128", PTSA_SEND_TIMEOUT_MS="1500") as server:
        idle = [ask(server, "/v1/predict?format=npz", large) for _ in range(2)]
        idle[0].settimeout(30)
        assert idle[0].recv(15) == b"HTTP/1.1 200 OK"
        started = time.monotonic()
        assert server.photo(photo_jpeg).status_code == 200
        assert time.monotonic() - started < 1.5
        assert held(server) > 0
        until(lambda: held(server) == 0)
        received = 0
        with contextlib.suppress(ConnectionError):
            while part := idle[0].recv(2**20):
                received += len(part)
        assert received < 2000 * 1500 * 21
        for connection in idle:
            connection.close()


@pytest.mark.parametrize("path", ["/v1/predict/depth?render=overlay", "/v1/predict"])
def test_memory_of_a_photo_in_the_queue_is_held(serve, large: bytes, until, path: str) -> None:
    with serve() as server:
        server.engine.gate.clear()
        connections = [ask(server, path, large) for _ in range(2)]
        until(lambda: server.runtime.batcher.depth == 1)
        per_photo = 2000 * 1500 * (24 + 3 * ("overlay" in path))
        assert 2 * per_photo < held(server) < 2 * per_photo + 2**20
        for connection in connections:
            connection.close()
        server.engine.gate.set()
        until(lambda: held(server) == 0)


def test_refused_photo_holds_nothing(serve, large: bytes) -> None:
    with serve() as server:
        assert server.photo(large[: len(large) // 2]).status_code == 400
        assert server.photo(large, X_Deadline_Ms="1").status_code == 504
        time.sleep(0.3)
        assert held(server) == 0


@contextlib.contextmanager
def peak_of(process: psutil.Process) -> Iterator[list[int]]:
    """The highest resident size of `process` inside the block, in its one member."""
    highest, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            highest[0] = max(highest[0], process.memory_info().rss)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield highest
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize(
    "path", ["/v1/predict?format=npz", "/v1/predict/depth?render=overlay", "/v1/predict?format=json"]
)
def test_process_stays_within_its_budget_whatever_clients_leave_unread(serve, large: bytes, path: str) -> None:
    with serve(PTSA_MEMORY_MIB="256", PTSA_SEND_TIMEOUT_MS="300", PTSA_TIMEOUT_MS="8000") as server:
        server.photo(large)
        process = psutil.Process()
        before = process.memory_info().rss
        with peak_of(process) as highest:
            clients = [ask(server, path, large) for _ in range(12)]
            for client in clients:
                client.settimeout(20)
                client.recv(1)
            for client in clients:
                client.close()
        assert highest[0] - before < 256 * 2**20
