"""Servers for the HTTP tests: the app on a real port, with an engine whose delay and faults can be set."""

import io
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import pytest
import uvicorn
from PIL import Image

from ptsa_serve.artifact import Artifact
from ptsa_serve.engines import Engine, EngineOptions, load_engine
from ptsa_serve.errors import EngineError
from ptsa_serve.http.app import create_app
from ptsa_serve.http.runtime import Runtime
from ptsa_serve.predictor import Predictor
from ptsa_serve.settings import Settings


@dataclass
class ScriptedEngine:
    """A real engine that remembers its batches, and is slow (`delay` seconds a run), held (while `gate` is not set)
    or at fault when a test wants it."""

    inner: Engine
    delay: float = 0.0
    fails_on_black: bool = False
    fails_always: bool = False
    batches: list[int] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.name, self.version, self.sizes, self.lanes = "scripted", "1", self.inner.sizes, 1
        self.precision, self.branches = self.inner.precision, self.inner.branches
        self.gate.set()

    def run(
        self, batch: np.ndarray, tasks: Sequence[str] | None = None, *, alone: bool = True
    ) -> dict[str, np.ndarray]:
        self.batches.append(len(batch))
        assert self.gate.wait(60)
        time.sleep(self.delay)
        if self.fails_always or (self.fails_on_black and batch.reshape(len(batch), -1).mean(axis=1).min() < 1):
            raise EngineError("scripted fault")
        return self.inner.run(batch, tasks, alone=alone)

    def close(self) -> None:
        self.inner.close()


@dataclass
class Running:
    """A server on a port of its own."""

    url: str
    runtime: Runtime
    engine: ScriptedEngine
    http: httpx.Client

    def get(self, path: str, **options) -> httpx.Response:
        return self.http.get(path, **options)

    def post(self, path: str = "/v1/predict", **options) -> httpx.Response:
        return self.http.post(path, **options)

    def photo(self, data: bytes, path: str = "/v1/predict", **headers: str) -> httpx.Response:
        headers = {"Content-Type": "image/jpeg"} | {name.replace("_", "-"): v for name, v in headers.items()}
        return self.post(path, content=data, headers=headers)


Serve = Callable[..., AbstractContextManager[Running]]


@pytest.fixture(scope="session")
def serve(tiny_artifact: Path) -> Serve:
    """`with serve(PTSA_QUEUE="2") as server:` starts one with those settings and ends it."""

    @contextmanager
    def start(**environ: str) -> Iterator[Running]:
        engines: list[ScriptedEngine] = []

        def load(settings: Settings) -> Predictor:
            artifact = Artifact.open(tiny_artifact)
            engines.append(ScriptedEngine(load_engine("onnxruntime", artifact, EngineOptions(threads=1))))
            return Predictor(artifact, engines[0], settings.limits())

        runtime = Runtime(Settings.load(environ), load)
        config = uvicorn.Config(create_app(runtime), port=0, log_config=None, lifespan="on")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        wait_for(lambda: server.started or not thread.is_alive())
        port = server.servers[0].sockets[0].getsockname()[1]
        engines[0].batches.clear()
        url = f"http://127.0.0.1:{port}"
        # One client for all: each of its own would spend more time on its TLS set-up than the server on a photo.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        try:
            with httpx.Client(base_url=url, timeout=20, limits=limits) as client:
                yield Running(url, runtime, engines[0], client)
        finally:
            engines[0].gate.set()
            server.should_exit = True
            thread.join(20)

    return start


@pytest.fixture(scope="session")
def server(serve: Serve) -> Iterator[Running]:
    """One server with default settings, for tests that leave it as they found it."""
    with serve() as running:
        yield running


@pytest.fixture(scope="session")
def black_png() -> bytes:
    """A photo on which a scripted engine may fail; of the same shape as `photo_jpeg`."""
    file = io.BytesIO()
    Image.new("RGB", (320, 240)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="session")
def tall_png() -> bytes:
    """A photo of another of the model's sizes."""
    file = io.BytesIO()
    Image.new("RGB", (240, 320), "teal").save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="session")
def until() -> Callable[..., None]:
    """`until(condition)` waits until it holds; fails after 30 seconds, or as many as are given."""
    return wait_for


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """Gives ports that nobody listens on."""

    def find() -> int:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            return taken.getsockname()[1]

    return find


def wait_for(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not come to hold"
        time.sleep(0.005)
