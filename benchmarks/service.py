"""What does the service add to the engine's own time, what does it do under load, and how much memory does it take?"""

import asyncio
import http.client
import io
import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from statistics import fmean, median

import httpx
import numpy as np
from PIL import Image
from tqdm import tqdm

from benchmarks.clients import closed_loop
from benchmarks.measurement import Measurement, median_ms
from benchmarks.server import Server, running_server
from ptsa_serve.artifact import Artifact
from ptsa_serve.engines import Engine
from ptsa_serve.loading import load_predictor
from ptsa_serve.settings import Settings

__all__ = ["measure_load", "measure_memory", "measure_requests", "photo_640"]

# Requests of each client in a round of the load.
_ROUND = 3
# Clients whose photos are side by side where memory is measured.
_CROWD = 6


def photo_640(artifact: Artifact) -> bytes:
    """The artifact's sample photo as a JPEG of 640 x 480."""
    jpeg, _ = artifact.sample()
    buffer = io.BytesIO()
    Image.open(io.BytesIO(jpeg)).convert("RGB").resize((640, 480)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def measure_requests(artifact: Artifact, *, threads: int, rounds: int) -> Measurement:
    """One photo of 640 x 480 at a time: whole requests by format, beside the engine's own time inside them.

    The client is the standard library's, on one kept connection: it adds least to what is measured.
    """
    data = photo_640(artifact)
    whole: dict[str, list[float]] = {"npz": [], "zip": []}
    engine: dict[str, list[float]] = {"npz": [], "zip": []}
    with _server(artifact, threads) as server:
        connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=60)
        for number in range(rounds + 3):
            for format_ in whole:
                start = time.perf_counter()
                connection.request("POST", f"/v1/predict?format={format_}", data, {"Content-Type": "image/jpeg"})
                answer = connection.getresponse()
                answer.read()
                seconds = time.perf_counter() - start
                if answer.status != 200:
                    raise RuntimeError(f"the server answered {answer.status}")
                if number >= 3:
                    whole[format_].append(seconds)
                    engine[format_].append(_server_timing(answer.headers["Server-Timing"])["model"] / 1000)
    figures = {}
    for format_ in whole:
        extra = [a - b for a, b in zip(whole[format_], engine[format_], strict=True)]
        figures |= {
            f"{format_}_request_ms": median_ms(whole[format_]),
            f"{format_}_engine_ms": median_ms(engine[format_]),
            f"{format_}_above_engine_ms": median_ms(extra),
        }
    conditions = {"photo": "640x480 JPEG", "threads": threads, "rounds": rounds, "clients": 1}
    return Measurement("What does the service add to the engine's own time?", figures, conditions)


def measure_load(artifact: Artifact, *, threads: int, clients: int, requests: int) -> Measurement:
    """Closed loop of `clients`, in rounds; the engine that serves is timed alone, before and after each.

    Which engine it is follows from the PTSA_* variables, as for users.
    """
    data = photo_640(artifact)
    own = {**os.environ, "PTSA_MODEL": str(artifact.folder), "PTSA_THREADS": str(threads)}
    engine = load_predictor(Settings.load(own), tune=True).engine
    rounds = max(1, requests // (_ROUND * clients))
    rates, ratios, statuses = [], [], []
    with _server(artifact, threads, PTSA_QUEUE=str(4 * clients)) as server:
        alone = [_engine_rate(engine)]
        for _ in range(rounds):
            url = f"{server.url}/v1/predict?format=npz"
            load = closed_loop(url, data, clients=clients, requests=requests // rounds)
            alone.append(_engine_rate(engine))
            rates.append(load.rate)
            ratios.append(100 * load.rate / fmean(alone[-2:]))
            statuses += load.statuses
    engine.close()
    with _server(artifact, threads, PTSA_QUEUE="2") as server:
        overflow = asyncio.run(_burst(server, data, 24))
    refused = [wait for status, wait, retry in overflow if status == 503 and retry]
    figures = {
        "service_photos_per_second": median(rates),
        "engine_photos_per_second": median(alone),
        "service_against_engine_percent": median(ratios),
        "service_against_engine_lowest_percent": min(ratios),
        "service_against_engine_highest_percent": max(ratios),
        "failures": float(sum(status != 200 for status in statuses)),
        "burst_of_24_queue_2_answered": float(sum(status == 200 for status, *_ in overflow)),
        "burst_of_24_queue_2_refused_with_retry_after": float(len(refused)),
        "burst_refusal_ms": median_ms(refused) if refused else None,
    }
    conditions = {
        "photo": "640x480 JPEG",
        "format": "npz",
        "engine": f"{engine.name} {engine.precision}",
        "threads": threads,
        "clients": clients,
        "requests": len(statuses),
        "rounds": rounds,
    }
    return Measurement("What does the service do under load?", figures, conditions)


def measure_memory(artifact: Artifact, *, threads: int, requests: int, shapes: int) -> Measurement:
    """Resident memory when ready, while photos of `shapes` sizes are answered one after another, and then side by side.

    Growth is that between the medians of the third and of the last quarter of the requests one after another: one
    reading wanders by the size of a photo's maps. Which engine it is follows from the PTSA_* variables, as for users.
    """
    photos = _photos_of_five_shapes(artifact)[:shapes]
    with _server(artifact, threads) as server, httpx.Client(base_url=server.url, timeout=120) as client:

        def ask(number: int) -> float:
            client.post("/v1/predict?format=npz", files={"image": photos[number % shapes]}).raise_for_status()
            return server.resident_mb()

        ready = server.resident_mb()
        readings = [ask(number) for number in tqdm(range(requests), desc="memory", unit="request")]
        with ThreadPoolExecutor(_CROWD) as pool:
            crowd = list(pool.map(ask, range(requests)))
        peak = server.peak_mb()
        engine = client.get("/v1/models").json()["models"][0]["engine"]
    half, quarter = requests // 2, requests // 4
    figures = {
        "ready_MB": ready,
        f"after_{half}_requests_MB": readings[half - 1],
        f"after_{requests}_requests_MB": readings[-1],
        "highest_MB": max(readings),
        "growth_third_to_last_quarter_MB": median(readings[-quarter:]) - median(readings[half : half + quarter]),
        "side_by_side_highest_MB": max(crowd),
        "peak_with_start_MB": peak,
    }
    conditions = {
        "engine": f"{engine['name']} {engine['version']} {engine['precision']}",
        "prefer": Settings.load().prefer,
        "warm": Settings.load().warm,
        "threads": threads,
        "requests": f"{requests} one after another, as many from {_CROWD} clients",
        "photos": f"aspect ratios in turn: {shapes}",
    }
    return Measurement("How much memory does the service take, and does it grow?", figures, conditions)


def _server(artifact: Artifact, threads: int, **settings: str) -> AbstractContextManager[Server]:
    return running_server(PTSA_MODEL=str(artifact.folder), PTSA_THREADS=str(threads), **settings)


def _photos_of_five_shapes(artifact: Artifact) -> list[bytes]:
    """The artifact's sample photo as JPEGs, each of which is run at another of the shipped model's sizes."""
    jpeg, _ = artifact.sample()
    photos = []
    for size in [(640, 480), (480, 640), (512, 512), (640, 360), (360, 640)]:
        buffer = io.BytesIO()
        Image.open(io.BytesIO(jpeg)).convert("RGB").resize(size).save(buffer, "JPEG")
        photos.append(buffer.getvalue())
    return photos


def _server_timing(header: str) -> dict[str, float]:
    return {name: float(ms) for name, ms in re.findall(r"(\w+);dur=([\d.]+)", header)}


def _engine_rate(engine: Engine, runs: int = 10) -> float:
    """Photos a second of the engine alone: one at a time, or one in each of its lanes, whichever is more."""
    photo = np.zeros((1, *engine.sizes.choose(480, 640), 3), np.uint8)

    def seconds(lanes: int) -> float:
        with ThreadPoolExecutor(lanes) as pool:
            start = time.perf_counter()
            list(pool.map(lambda _: engine.run(photo, alone=lanes == 1), range(runs)))
            return time.perf_counter() - start

    ways = {1, engine.lanes}
    for lanes in ways:  # wakes it up
        seconds(lanes)
    return runs / min(seconds(lanes) for lanes in ways)


async def _burst(server: Server, data: bytes, count: int) -> list[tuple[int, float, str | None]]:
    """Status, seconds and Retry-After of `count` requests at once."""

    async def one(client: httpx.AsyncClient) -> tuple[int, float, str | None]:
        start = time.perf_counter()
        answer = await client.post("/v1/predict?format=npz", files={"image": data})
        return answer.status_code, time.perf_counter() - start, answer.headers.get("retry-after")

    async with httpx.AsyncClient(base_url=server.url, timeout=120) as client:
        await client.get("/readyz")  # the client's own first request takes 0.3 s longer
        return await asyncio.gather(*(one(client) for _ in range(count)))
