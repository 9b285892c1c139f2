"""One path, however it is written: with a slash behind it, or as a whole address."""

import socket

import pytest


@pytest.mark.parametrize(
    "target", ["/v1/predict/", "http://photos.example/v1/predict", "HTTPS://x:8/v1/predict/?size=model"]
)
def test_photo_is_answered_however_its_path_is_written(server, photo_jpeg: bytes, target: str) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    head = f"POST {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: {len(photo_jpeg)}\r\n\r\n"
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(head.encode() + photo_jpeg)
        answer = connection.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"application/zip" in answer


@pytest.mark.parametrize(
    "path", ["/v1/predict/depth/", "/v1/models/", "/metrics/", "/readyz/", "/v2/models/ptsa-tiny/"]
)
def test_a_slash_at_the_end_changes_nothing_and_redirects_nowhere(server, photo_jpeg: bytes, path: str) -> None:
    answer = server.photo(photo_jpeg, path) if "predict" in path else server.get(path)
    assert answer.status_code == 200


def test_two_accept_lines_are_one_list(server, photo_jpeg: bytes) -> None:
    headers = [("Content-Type", "image/jpeg"), ("Accept", "text/html"), ("Accept", "application/json")]
    answer = server.post(content=photo_jpeg, headers=headers)
    assert answer.headers["Content-Type"].startswith("application/json")
