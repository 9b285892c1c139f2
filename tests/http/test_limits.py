"""Too much: bodies and photos over the limit are refused early, seen by the client, and cost no memory."""

import concurrent.futures
import io
import socket
import struct
import time
import urllib.error
import urllib.request
import zlib

import httpx
import psutil
import pytest
from PIL import Image

MIB = 2**20


def png_of(width: int, height: int) -> bytes:
    """A PNG of one colour, without holding its pixels: small as a file, large when decoded."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    packer = zlib.compressobj(9)
    row = b"\0" * (width + 1)
    data = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def resident() -> int:
    return psutil.Process().memory_info().rss


def asking(length: int, path: str = "/v1/predict") -> str:
    """The head of a request that waits to be told to send its body."""
    return f"POST {path} HTTP/1.1\nHost: x\nContent-Length: {length}\nExpect: 100-continue\n\n"


def talk(server, head: str, *, then: bytes = b"", pause: float = 0.0) -> bytes:
    """Send raw bytes; what the server answers until it stops for a moment."""
    address = httpx.URL(server.url)
    with socket.create_connection((address.host, address.port)) as connection:
        connection.sendall(head.replace("\n", "\r\n").encode())
        time.sleep(pause)
        connection.sendall(then)
        connection.settimeout(1)
        answer = b""
        try:
            while b"\r\n\r\n{" not in answer:
                piece = connection.recv(65536)
                if not piece:
                    break
                answer += piece
        except TimeoutError:
            pass
        return answer


def test_large_body_is_refused_by_its_announced_length(server) -> None:
    answer = server.photo(b"x" * (21 * MIB))
    assert (answer.status_code, answer.json()["code"]) == (413, "too-large")
    assert str(20 * MIB) in answer.json()["detail"]


@pytest.mark.parametrize("megabytes", [30, 100])
def test_large_body_of_unknown_length_is_refused_with_flat_memory(server, megabytes: int) -> None:
    block = b"\xff" * MIB
    before = resident()
    peak = 0

    def blocks():
        nonlocal peak
        for _ in range(megabytes):
            peak = max(peak, resident())
            yield block

    try:
        answer = server.photo(blocks())
    except (httpx.WriteError, httpx.ReadError):
        # Beyond the 64 MiB that are read and thrown away the connection ends.
        assert megabytes > 64
    else:
        assert answer.status_code == 413
    assert peak - before < 70 * MIB


def test_common_clients_see_the_refusal_of_a_body_that_they_send_first(server) -> None:
    request = urllib.request.Request(
        f"{server.url}/v1/predict", data=b"x" * (40 * MIB), headers={"Content-Type": "image/jpeg"}
    )
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=20)
    with caught.value as answer:
        assert answer.code == 413


@pytest.mark.parametrize("path", ["/v1/predict", "/v1/predict/nothing", "/nothing"])
def test_refusals_of_all_kinds_reach_a_client_that_sends_first(server, path: str) -> None:
    request = urllib.request.Request(server.url + path, data=b"x" * (8 * MIB), headers={"Content-Type": "text/plain"})
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=20)
    with caught.value as answer:
        assert answer.code in (404, 415)


def test_client_that_asks_first_is_refused_without_sending_a_byte(server) -> None:
    head = asking(999_999_999)
    start = time.monotonic()
    answer = talk(server, head)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"100 Continue" not in answer
    assert b"connection: close" in answer.lower()
    assert time.monotonic() - start < 1.9, "nothing may be waited for"


def test_client_that_asks_first_is_told_to_go_on(server, photo_jpeg: bytes) -> None:
    head = asking(len(photo_jpeg), "/v1/predict/depth")
    answer = talk(server, head, then=photo_jpeg, pause=0.1)
    assert answer.startswith(b"HTTP/1.1 100 Continue")
    assert b"200 OK" in answer


def test_client_that_never_sends_its_body_is_answered_after_two_seconds(server) -> None:
    head = "POST /v1/predict HTTP/1.1\nHost: x\nContent-Type: image/jpeg\nContent-Length: 999999999\n\nabc"
    address = httpx.URL(server.url)
    start = time.monotonic()
    with socket.create_connection((address.host, address.port)) as connection:
        connection.sendall(head.replace("\n", "\r\n").encode())
        connection.settimeout(20)
        assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")
    assert time.monotonic() - start > 1.5


def test_connection_lives_on_after_a_refusal_that_was_read_whole(server, photo_jpeg: bytes) -> None:
    with httpx.Client(base_url=server.url) as client:
        headers = {"Content-Type": "text/plain"}
        assert client.post("/v1/predict", content=b"x" * 100_000, headers=headers).status_code == 415
        answer = client.post("/v1/predict/depth", content=photo_jpeg, headers={"Content-Type": "image/jpeg"})
        assert answer.status_code == 200


def test_many_pixels_in_few_bytes_are_refused_from_the_header(server) -> None:
    bomb = png_of(13_000, 13_000)
    assert len(bomb) < MIB
    before = resident()
    answer = server.photo(bomb)
    assert (answer.status_code, answer.json()["code"]) == (413, "too-large")
    # Decoded it would take 169 MB for the grey pixels alone.
    assert resident() - before < 50 * MIB


def test_limits_are_those_that_are_set(serve, photo_jpeg: bytes) -> None:
    with serve(PTSA_MAX_BYTES="1024", PTSA_MAX_PIXELS="5000", PTSA_MIN_SIDE="32", PTSA_MAX_SIDE="100") as server:
        shown = server.get("/v1/models").json()["models"][0]["limits"]
        assert (shown["max_bytes"], shown["max_pixels"], shown["min_side"], shown["max_side"]) == (1024, 5000, 32, 100)
        assert server.photo(photo_jpeg).status_code == 413
        assert server.photo(png_of(80, 80)).json()["code"] == "too-large"
        assert server.photo(png_of(20, 40)).json()["code"] == "bad-parameter"
        assert server.photo(png_of(40, 120)).json()["code"] == "bad-parameter"
        assert server.photo(png_of(40, 40)).status_code == 200


def test_many_big_photos_at_once_stay_within_the_memory_budget(serve) -> None:
    file = io.BytesIO()
    Image.new("RGB", (4000, 3000), "navy").save(file, "JPEG")
    photo = file.getvalue()
    with serve(PTSA_MEMORY_MIB="256", PTSA_WORKERS="8") as server:
        before, peak = resident(), 0
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            answers = [pool.submit(server.photo, photo, "/v1/predict/depth?size=model") for _ in range(16)]
            while not all(answer.done() for answer in answers):
                peak = max(peak, resident())
                time.sleep(0.005)
        assert [answer.result().status_code for answer in answers] == [200] * 16
    assert peak - before < 400 * MIB
