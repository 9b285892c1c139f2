"""Many photos at once: batches, faults, full queues, deadlines, clients that leave."""

import concurrent.futures
import socket
import time
from collections.abc import Callable, Sequence

import httpx
import pytest


def at_once(calls: Sequence[Callable[[], httpx.Response]]) -> list[httpx.Response]:
    with concurrent.futures.ThreadPoolExecutor(len(calls)) as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]


def leave_early(server, photo: bytes) -> socket.socket:
    """A connection that has sent its photo whole; closing it is going away."""
    address = httpx.URL(server.url)
    connection = socket.create_connection((address.host, address.port))
    head = f"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: {len(photo)}\r\n\r\n"
    connection.sendall(head.encode() + photo)
    return connection


def test_one_poisoned_photo_of_a_batch_fails_alone(serve, photo_jpeg: bytes, black_png: bytes) -> None:
    with serve(PTSA_MAX_BATCH="8") as server:
        server.engine.delay, server.engine.fails_on_black = 0.1, True
        photos = [photo_jpeg] * 5 + [black_png] + [photo_jpeg] * 6
        answers = at_once([lambda photo=photo: server.photo(photo, "/v1/predict/depth") for photo in photos])
        assert [answer.status_code for answer in answers] == [200] * 5 + [500] + [200] * 6
        assert answers[5].json()["code"] == "internal"
        assert max(server.engine.batches) > 1
        assert server.photo(photo_jpeg).status_code == 200


def test_one_photo_that_is_none_hurts_no_other(serve, photo_jpeg: bytes) -> None:
    with serve(PTSA_MAX_BATCH="8") as server:
        server.engine.delay = 0.05
        photos = [photo_jpeg] * 7 + [b"garbage"]
        answers = at_once([lambda photo=photo: server.photo(photo) for photo in photos])
        assert [answer.status_code for answer in answers] == [200] * 7 + [400]


def test_photos_of_two_shapes_at_once_are_all_answered(serve, photo_jpeg: bytes, tall_png: bytes) -> None:
    with serve(PTSA_MAX_BATCH="8") as server:
        server.engine.delay = 0.05
        alone = [server.photo(photo, "/v1/predict/depth").content for photo in (photo_jpeg, tall_png)]
        photos = [photo_jpeg, tall_png] * 6
        answers = at_once([lambda photo=photo: server.photo(photo, "/v1/predict/depth") for photo in photos])
        assert [answer.status_code for answer in answers] == [200] * 12
        # Same photo, same maps, whatever stood beside it in the batch.
        assert [answer.content for answer in answers] == alone * 6


def test_burst_is_served_in_full_batches(serve, photo_jpeg: bytes) -> None:
    with serve(PTSA_MAX_BATCH="8") as server:
        server.engine.delay = 0.15
        answers = at_once([lambda: server.photo(photo_jpeg, "/v1/predict/depth?size=model")] * 32)
        assert [answer.status_code for answer in answers] == [200] * 32
        assert len(server.engine.batches) <= 8


def test_queue_overflow_is_refused_at_once_with_retry_after(serve, photo_jpeg: bytes) -> None:
    with serve(PTSA_QUEUE="3") as server:
        server.engine.delay = 0.3

        def timed() -> tuple[httpx.Response, float]:
            start = time.monotonic()
            return server.photo(photo_jpeg), time.monotonic() - start

        with concurrent.futures.ThreadPoolExecutor(12) as pool:
            outcomes = [future.result() for future in [pool.submit(timed) for _ in range(12)]]
        refused = [(answer, seconds) for answer, seconds in outcomes if answer.status_code == 503]
        assert len(refused) == 8
        assert sum(answer.status_code == 200 for answer, _ in outcomes) == len(server.engine.batches) == 4
        for answer, seconds in refused:
            assert answer.json()["code"] == "overloaded"
            assert 1 <= int(answer.headers["Retry-After"]) <= 10
            assert seconds < 0.3
        assert server.get("/readyz").status_code == 200, "an overload must not take it out of rotation"


def test_clients_that_leave_cost_the_model_nothing(serve, photo_jpeg: bytes, until) -> None:
    with serve() as server:
        server.engine.delay = 0.4
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            first = pool.submit(server.photo, photo_jpeg)
            until(lambda: len(server.engine.batches) == 1)
            leavers = [leave_early(server, photo_jpeg) for _ in range(3)]
            until(lambda: server.runtime.batcher.depth == 3)
            for connection in leavers:
                connection.close()
            until(lambda: server.runtime.batcher.depth == 0)
            start = time.monotonic()
            assert server.photo(photo_jpeg).status_code == 200
            assert time.monotonic() - start < 2 * server.engine.delay + 0.3
            assert first.result().status_code == 200
        assert len(server.engine.batches) == 2
        until(lambda: server.runtime.idle)
        assert 'ptsa_dropped_total{reason="abandoned"} 3.0' in server.get("/metrics").text
        assert 'route="/v1/predict",status="499"} 3.0' in server.get("/metrics").text


def test_deadline_is_answered_when_it_passes_and_the_rest_is_never_run(serve, photo_jpeg: bytes, until) -> None:
    with serve() as server:
        server.engine.delay = 0.5
        start = time.monotonic()
        answers = at_once([lambda: server.photo(photo_jpeg, X_Deadline_Ms="250")] * 4)
        assert time.monotonic() - start < 0.5
        assert [answer.status_code for answer in answers] == [504] * 4
        assert {answer.json()["code"] for answer in answers} == {"deadline-exceeded"}
        until(lambda: server.runtime.batcher.running_for() == 0)
        assert len(server.engine.batches) == 1


def test_hopeless_deadline_is_refused_before_it_costs_the_model_anything(serve, photo_jpeg: bytes) -> None:
    with serve() as server:
        server.engine.delay = 0.3
        assert server.photo(photo_jpeg).status_code == 200
        runs = len(server.engine.batches)
        start = time.monotonic()
        answer = server.photo(photo_jpeg, X_Deadline_Ms="100")
        assert (answer.status_code, answer.json()["code"]) == (504, "deadline-exceeded")
        assert time.monotonic() - start < 0.1
        assert len(server.engine.batches) == runs


def test_servers_own_limit_is_a_deadline_too(serve, photo_jpeg: bytes) -> None:
    with serve(PTSA_TIMEOUT_MS="100") as server:
        server.engine.delay = 0.3
        assert server.photo(photo_jpeg, X_Deadline_Ms="60000").status_code == 504


def test_slow_upload_ends_at_the_deadline(serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ptsa_serve.edge._DRAIN_SECONDS", 0.1)
    with serve(PTSA_TIMEOUT_MS="150") as server:
        address = httpx.URL(server.url)
        with socket.create_connection((address.host, address.port)) as connection:
            head = "POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: 9\r\n\r\nabc"
            connection.sendall(head.encode())
            connection.settimeout(5)
            answer = connection.recv(4096)
        assert b" 504 " in answer.split(b"\r\n")[0]


def test_bad_deadline_is_refused(server, photo_jpeg: bytes) -> None:
    answer = server.photo(photo_jpeg, X_Deadline_Ms="soon")
    assert (answer.status_code, answer.json()["parameter"]) == (422, "X-Deadline-Ms")


def test_probes_answer_at_once_while_the_engine_works(serve, photo_jpeg: bytes, until) -> None:
    with serve() as server:
        server.engine.delay = 0.5
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            photos = [pool.submit(server.photo, photo_jpeg) for _ in range(3)]
            until(lambda: len(server.engine.batches) == 1)
            with httpx.Client(base_url=server.url) as client:
                client.get("/livez")
                worst = 0.0
                for _ in range(10):
                    start = time.monotonic()
                    assert client.get("/livez").status_code == 200
                    worst = max(worst, time.monotonic() - start)
            assert [photo.result().status_code for photo in photos] == [200] * 3
        assert worst < 0.25


@pytest.mark.parametrize("faults", [1, 4])
def test_engine_fault_is_500_for_that_request_only(serve, photo_jpeg: bytes, faults: int) -> None:
    with serve() as server:
        server.engine.fails_always = True
        for _ in range(faults):
            answer = server.photo(photo_jpeg)
            assert (answer.status_code, answer.json()["code"]) == (500, "internal")
            assert "scripted" not in answer.text
        server.engine.fails_always = False
        assert server.photo(photo_jpeg).status_code == 200
        assert server.get("/readyz").status_code == 200


def test_engine_that_only_fails_turns_the_probes_red(serve, photo_jpeg: bytes) -> None:
    with serve() as server:
        server.engine.fails_always = True
        for _ in range(5):
            server.photo(photo_jpeg)
        assert server.get("/readyz").status_code == 503
        assert server.get("/livez").status_code == 503
