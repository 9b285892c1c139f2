"""What Prometheus may read: counters and times with labels from closed sets, never a path, key or id of a client."""

import os
import re

# BentoML points the workers of all servers on a machine at one folder of metric files, and the server that starts last
# empties it. One worker is all that a server of ours has, so its numbers stay in the process. prometheus_client looks
# at this variable when it is imported, hence before that.
os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST

__all__ = ["CONTENT_TYPE_LATEST", "ROUTES", "Metrics", "route_of"]

# Paths by the template under which they are counted; all others are one, "other".
ROUTES: dict[str, str] = {
    r"/": "/",
    r"/livez": "/livez",
    r"/readyz": "/readyz",
    r"/healthz": "/healthz",
    r"/metrics": "/metrics",
    r"/docs\.json": "/docs.json",
    r"/schema\.json": "/schema.json",
    r"/predict": "/predict",
    r"/v1/predict": "/v1/predict",
    r"/v1/predict/[^/]+": "/v1/predict/{task}",
    r"/v1/models": "/v1/models",
    r"/v1/models/[^/]+": "/v1/models/{name}",
    r"/problems/[^/]+": "/problems/{code}",
    r"/ui(/.*)?": "/ui",
    r"/v2(/.*)?": "/v2",
}

_METHODS = ("GET", "HEAD", "POST", "OPTIONS")

# Seconds: fine where a photo takes tens of milliseconds, coarse up to the default timeout.
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.025, 0.04, 0.065, 0.1, 0.16, 0.25, 0.4, 0.65, 1, 2.5, 5, 10, 30)
_PIXELS = (1e4, 1e5, 3e5, 1e6, 2e6, 4e6, 8e6, 12e6, 24e6, 48e6, 100e6)
# Without a second series for each counter that says when it was made.
disable_created_metrics()

_COMPILED = [(re.compile(pattern), label) for pattern, label in ROUTES.items()]


def route_of(path: str) -> str:
    """The template of `path`, or "other": a closed set, so that strangers cannot grow the metrics."""
    return next((label for pattern, label in _COMPILED if pattern.fullmatch(path)), "other")


class Metrics:
    """All metrics of one server, on a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("ptsa_requests", "Answers.", ["route", "method", "status"], registry=registry)
        self.seconds = Histogram(
            "ptsa_request_duration_seconds", "From the head of a request to the end of its answer.", ["route"],
            buckets=_BUCKETS, registry=registry,
        )  # fmt: skip
        self.stages = Histogram(
            "ptsa_stage_duration_seconds", "Steps of one photo.", ["stage"], buckets=_BUCKETS, registry=registry
        )
        self.batch = Histogram(
            "ptsa_batch_size", "Photos in one run.", buckets=(1, 2, 4, 8, 16, 32, 64), registry=registry
        )
        self.pixels = Histogram("ptsa_image_pixels", "Pixels of a photo.", buckets=_PIXELS, registry=registry)
        self.dropped = Counter("ptsa_dropped", "Photos dropped before the model ran.", ["reason"], registry=registry)
        self.failures = Counter("ptsa_engine_errors", "Runs that failed.", registry=registry)
        self.in_flight = Gauge("ptsa_inflight", "Photos accepted and not answered.", registry=registry)
        self.depth = Gauge("ptsa_queue_depth", "Photos that wait for the model.", registry=registry)
        self.memory = Gauge(
            "ptsa_memory_held_bytes", "Bytes reserved for bodies, photos, maps and answers.", registry=registry
        )
        self.ready = Gauge("ptsa_ready", "1 when the model is loaded, verified and serving.", registry=registry)
        self.build = Gauge("ptsa_build_info", "Always 1.", ["version", "model", "engine"], registry=registry)

    def count(self, route: str, method: str, status: int, seconds: float) -> None:
        """Record one answer."""
        self.requests.labels(route, method if method in _METHODS else "other", str(status)).inc()
        self.seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        """The exposition, in Prometheus text format."""
        return generate_latest(self.registry)
