"""The BentoML service: `bentoml serve ptsa_serve.service:Service`.

BentoML runs the process, the probes and its own API; every other route is the app of `ptsa_serve.http.app`.
"""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import bentoml
from bentoml._internal.utils.analytics import usage_stats
from starlette.responses import StreamingResponse

from ptsa_serve import startup
from ptsa_serve.errors import RequestError
from ptsa_serve.http.app import mounted_app, server_timing
from ptsa_serve.http.bento_api import Guard, Maps, arrays_json
from ptsa_serve.http.edge import Edge
from ptsa_serve.http.problems import problem_response
from ptsa_serve.http.runtime import Runtime
from ptsa_serve.http.work import Work

__all__ = ["Service"]

# `bentoml serve` has asked before it imports this module, and keeps the answer; ours was set since.
usage_stats.do_not_track.cache_clear()

_SETTINGS = startup.read_settings()
_RUNTIME = Runtime(_SETTINGS)


@bentoml.asgi_app(mounted_app(_RUNTIME), path="/", name="ptsa")
@bentoml.service(
    name="ptsa-serve",
    # One engine, one queue: more workers would each hold the model and know nothing of the others' queues.
    workers=1,
    # Ours answers first, with a problem that says so. No longer than needed: BentoML never cancels this timer, and each
    # keeps what belongs to its request, about 6 kB, until it goes off.
    traffic={"timeout": _SETTINGS.timeout_ms / 1000 + 5},
    # BentoML labels its metrics with raw paths, so strangers can grow them without limit; ours are at /metrics.
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
    # BentoML records a span for every message of an answer, whether or not anything collects them: a fifth of what the
    # event loop does. Whoever names an exporter for this service in BENTOML_CONFIG sets `excluded_urls: []` beside it.
    tracing={"excluded_urls": "."},
)
class Service:
    """Every dense map of a photo, from one forward pass."""

    @bentoml.on_deployment
    @staticmethod
    def check() -> None:
        """Before the port opens, in the supervisor."""
        startup.check(_RUNTIME)

    @bentoml.on_startup
    async def start(self) -> None:
        """Begin to load the model: probes and photos are answered from now on, with `not-ready` until it is there."""
        self._loading = asyncio.create_task(startup.start_worker(_RUNTIME, "ptsa-serve"))
        startup.drain_on_sigterm(_RUNTIME, grace=_SETTINGS.timeout_ms / 1000)

    @bentoml.on_shutdown
    async def stop(self) -> None:
        """Finish what is queued and give the engine back."""
        _RUNTIME.drain()
        await asyncio.to_thread(_RUNTIME.close)

    def __is_ready__(self) -> bool:
        return _RUNTIME.ready()

    def __is_alive__(self) -> bool:
        return _RUNTIME.alive()

    @bentoml.api(route="/predict")
    async def predict(self, image: Path, ctx: bentoml.Context) -> Maps:  # type: ignore[valid-type]
        """All maps of one photo, as arrays by task name, at the photo's size.

        image: JPEG, PNG, WebP, BMP, TIFF or GIF. Arrays: segmentation uint8 (H, W), depth float32 (H, W) in metres,
        normals float32 (H, W, 3) of unit length, saliency float32 (H, W), 0 to 1.
        """
        request = ctx.request
        try:
            work = Work(
                read=lambda: asyncio.to_thread(image.read_bytes),
                receive=request.receive,
                size_hint=0,
                deadline=_RUNTIME.deadline(request),
                held=request.state.held,
                tasks=tuple(_RUNTIME.predictor.tasks),
                size="photo",
                render=lambda prediction, _: arrays_json(prediction),
            )
            served = await _RUNTIME.serve(work)
        except RequestError as error:
            # BentoML takes status and headers from its context whenever an API asks for the context.
            ctx.response.status_code = error.status
            return problem_response(error, request.state.request_id)  # type: ignore[return-value]
        timing = {"Server-Timing": server_timing(served)}
        return StreamingResponse(  # type: ignore[return-value]
            cast(Iterator[bytes], served.value), media_type="application/json", headers=timing
        )


# BentoML's type of a middleware is that of one instance, where it takes the class.
Service.add_asgi_middleware(cast(Any, Edge), runtime=_RUNTIME)
Service.add_asgi_middleware(cast(Any, Guard), runtime=_RUNTIME)
