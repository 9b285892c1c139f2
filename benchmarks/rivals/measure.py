"""Which server gives the most photos a second from the same graph, and how long does a photo take under load?

All servers run at once and are asked in turn, a closed loop of clients each; those that are not asked rest. The engine
alone is timed in the same rounds: one photo on all threads, and as many photos at a time as there are threads on one
each, whichever is faster; that is the best that this machine can do.
"""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

import httpx
import numpy as np
import onnxruntime
import psutil
from tqdm import tqdm

from benchmarks.clients import Load, closed_loop
from benchmarks.measurement import Measurement
from benchmarks.rivals.plain import GRAPH
from benchmarks.server import running_server
from benchmarks.service import photo_640
from ptsa_serve.artifact import Artifact
from ptsa_serve.sizes import Size

__all__ = ["measure_rivals"]

PATH = "/v1/predict?format=npz&size=model"

# The graph that the rivals have, and whatever the server chooses by itself here.
OURS = ("ours", "ours_as_chosen")

# By name the command that serves on a port. Each posts the field `image` to /predict.
RIVALS: dict[str, tuple[str, ...]] = {
    "fastapi": ("uvicorn", "benchmarks.rivals.fastapi_app:app", "--log-level", "error", "--port"),
    "bentoml": ("bentoml", "serve", "benchmarks.rivals.bentoml_app:Rival", "--port"),
    "litserve": ("benchmarks.rivals.litserve_app",),
}


def measure_rivals(
    artifact: Artifact, *, threads: int, clients: int, requests: int, rounds: int, only: Sequence[str] = ()
) -> Measurement:
    """Each round every server, or each of `only`, gets `requests` photos from `clients` at a time.

    Raises ValueError for an unknown name in `only`.
    """
    names = _chosen(only)
    photo = photo_640(artifact)
    form = artifact.variants.form()
    size = artifact.variants.sizes(form).choose(480, 640)
    engine: list[float] = []
    loads: dict[str, list[Load]] = {name: [] for name in names}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "graphs"
        artifact.write_external_data(folder)
        variant = artifact.variants.choose(form, size, tuple(artifact.manifest.task_table()))
        graph = folder / variant.path
        settings = {
            "PTSA_MODEL": str(artifact.folder), "PTSA_THREADS": str(threads), "PTSA_QUEUE": str(4 * clients)
        }  # fmt: skip
        same = {"PTSA_ENGINE": "onnxruntime", "PTSA_PRECISION": form.precision, "PTSA_BRANCHES": form.branches}
        urls = {}
        for name in names:
            if name in OURS:
                urls[name] = (
                    stack.enter_context(running_server(**settings, **(same if name == "ours" else {}))).url + PATH
                )
            else:
                urls[name] = stack.enter_context(_rival(name, graph, photo)) + "/predict"
        best = _Best(graph, size, threads)
        for _ in tqdm(range(rounds), desc="rounds"):
            engine.append(best.rate())
            for name, url in urls.items():
                loads[name].append(load := closed_loop(url, photo, clients=clients, requests=requests))
                if wrong := [status for status in load.statuses if status != 200]:
                    raise RuntimeError(f"{name} answered {wrong[0]}")
    answer = f"npz of {size[1]}x{size[0]}"
    conditions = {"photo": "640x480 JPEG", "answer": answer, "threads": threads, "clients": clients}
    return Measurement(
        "Which server gives the most photos a second from the same graph?",
        _figures(engine, loads),
        {**conditions, "rounds": rounds, "requests_a_round": requests},
    )


def _chosen(only: Sequence[str]) -> list[str]:
    known = [*OURS, *RIVALS]
    if unknown := [name for name in only if name not in known]:
        raise ValueError(f"--only names {unknown[0]!r}; use some of {', '.join(known)}")
    return [name for name in known if not only or name in only]


def _figures(engine: list[float], loads: Mapping[str, list[Load]]) -> dict[str, float]:
    rates = {"engine": engine, **{name: [load.rate for load in found] for name, found in loads.items()}}
    figures = {f"{name}_photos_per_second": median(found) for name, found in rates.items()}
    for name, found in loads.items():
        times = [1000 * seconds for load in found for seconds in load.seconds]
        figures |= {f"{name}_p50_ms": median(times), f"{name}_p95_ms": float(np.quantile(times, 0.95))}
    for name in rates:
        for mine in [mine for mine in OURS if mine in rates and name not in OURS]:
            ratios = [one / other for one, other in zip(rates[mine], rates[name], strict=True)]
            figures[f"{mine}_against_{name}_ratio"] = median(ratios)
    return figures


class _Best:
    """The graph in ONNX Runtime with its default options, one photo on all threads or one on each."""

    def __init__(self, graph: Path, size: Size, threads: int) -> None:
        self._threads = threads
        self._wide, self._narrow = (_session(graph, count) for count in (threads, 1))
        self._photo = {"image": np.zeros((1, *size, 3), np.uint8)}
        self.rate()  # the first runs do not count

    def rate(self, runs: int = 8) -> float:
        """Photos a second of the better way."""
        began = time.perf_counter()
        for _ in range(runs):
            self._wide.run(None, self._photo)
        between = time.perf_counter()
        with ThreadPoolExecutor(self._threads) as pool:
            list(pool.map(lambda _: self._narrow.run(None, self._photo), range(runs)))
        return runs / min(between - began, time.perf_counter() - between)


def _session(graph: Path, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


@contextmanager
def _rival(name: str, graph: Path, photo: bytes) -> Iterator[str]:
    """The address of a rival that answers. Raises RuntimeError if it does not come to."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, GRAPH: str(graph), "BENTOML_DO_NOT_TRACK": "true"}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *RIVALS[name], str(port)],
            env=environment, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        try:
            url = f"http://127.0.0.1:{port}"
            end = time.monotonic() + 120
            while not _answers(url, photo):
                if process.poll() is not None or time.monotonic() > end:
                    log.seek(0)
                    raise RuntimeError(f"{name} does not serve: {log.read().decode(errors='replace')[-500:]}")
                time.sleep(0.3)
            yield url
        finally:
            # Not its process group: workers of some have one of their own.
            for each in (*psutil.Process(process.pid).children(recursive=True), process):
                each.kill()
            process.wait()


def _answers(url: str, photo: bytes) -> bool:
    try:
        return httpx.post(f"{url}/predict", files={"image": photo}, timeout=60).status_code == 200
    except httpx.HTTPError:
        return False
