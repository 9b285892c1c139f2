"""The routes of the HTTP contract as one ASGI app: it knows statuses and bytes, the Predictor knows models."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio.to_thread
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from ptsa_serve.errors import NotFound, NotReady, RequestError, UnknownModel, UnknownTask
from ptsa_serve.http import answers, negotiate, open_inference, pages, problems
from ptsa_serve.http.answers import PiecesResponse
from ptsa_serve.http.body import body_size, read_photo
from ptsa_serve.http.edge import Edge
from ptsa_serve.http.metrics import CONTENT_TYPE_LATEST
from ptsa_serve.http.runtime import Runtime
from ptsa_serve.http.target import PAGE
from ptsa_serve.http.work import Answer, Served, Work
from ptsa_serve.prediction import Prediction
from ptsa_serve.predictor import Prepared

__all__ = ["create_app", "mounted_app", "server_timing", "waiting_app"]


def create_app(runtime: Runtime) -> Starlette:
    """The whole contract but the BentoML API, as an app of its own (any ASGI server runs it).

    Its lifespan starts `runtime` and closes it.
    """

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        del app
        await anyio.to_thread.run_sync(runtime.start)
        try:
            yield
        finally:
            await anyio.to_thread.run_sync(runtime.close)

    app = mounted_app(runtime)
    app.router.lifespan_context = lifespan
    app.router.routes.extend(_probes(runtime))
    app.add_middleware(Edge, runtime=runtime)
    return app


def waiting_app(runtime: Runtime) -> Starlette:
    """The same for a `runtime` that another process will start: what needs the model is `not-ready`."""

    async def not_ready(request: Request) -> Response:
        del request
        runtime.check_open()
        raise NotFound("there is nothing under this path; photos go to POST /v1/predict")

    app = create_app(runtime)
    # BentoML's own routes, which are not here.
    app.router.routes.append(Route("/{path:path}", not_ready, methods=["GET", "POST"]))
    return app


def mounted_app(runtime: Runtime) -> Starlette:
    """The routes that BentoML does not have, to be mounted in its app; the caller runs `runtime` and the Edge."""
    v1 = _Version1(runtime)
    app = Starlette(
        routes=[
            Route("/", pages.index, methods=["GET"]),
            Route("/ui", pages.ui_page, methods=["GET"]),
            Route(PAGE, pages.ui_page, methods=["GET"]),
            Route("/ui/{name:path}", pages.ui_file, methods=["GET"]),
            Route("/problems/{code}", _problem_page, methods=["GET"]),
            Route("/metrics", v1.metrics, methods=["GET"]),
            Route("/v1/models", v1.models, methods=["GET"]),
            Route("/v1/models/{name}", v1.model, methods=["GET"]),
            Route("/v1/predict", v1.predict, methods=["POST"]),
            Route("/v1/predict/{task}", v1.predict_task, methods=["POST"]),
            *open_inference.routes(runtime),
        ],
        exception_handlers={RequestError: _refused, ClientDisconnect: _left},
    )
    app.router.redirect_slashes = False
    return app


def server_timing(served: Served) -> str:
    """The Server-Timing header of one answer."""
    return ", ".join(f"{stage};dur={milliseconds:.1f}" for stage, milliseconds in served.timings_ms.items())


class _Version1:
    """The handlers under /v1, and /metrics."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime

    async def predict(self, request: Request) -> Response:
        ask = negotiate.parse_ask(
            request.query_params, negotiate.accepted(request.headers), tuple(self.runtime.predictor.tasks)
        )
        served = await self._serve(request, ask.tasks, ask.size, lambda prediction, _: answers.body(prediction, ask))
        return _answer(served, negotiate.FORMATS[ask.format], f"maps.{ask.format}")

    async def predict_task(self, request: Request) -> Response:
        task = request.path_params["task"]
        tasks = self.runtime.predictor.tasks
        if task not in tasks:
            raise UnknownTask(task, tasks)
        draw = negotiate.parse_draw(request.query_params, negotiate.accepted(request.headers), task)
        served = await self._serve(
            request,
            (task,),
            draw.size,
            lambda prediction, prepared: answers.drawing(prediction, prepared, draw),
            keep_image=draw.render == "overlay",
        )
        return _answer(served, negotiate.PNG, f"{task}.png")

    async def models(self, request: Request) -> Response:
        negotiate.no_parameters(request.query_params)
        return JSONResponse({"models": [self.runtime.info()]})

    async def model(self, request: Request) -> Response:
        negotiate.no_parameters(request.query_params)
        info = self.runtime.info()
        name = request.path_params["name"]
        if name != info["name"]:
            raise UnknownModel(name, [info["name"]])
        return JSONResponse(info)

    async def metrics(self, request: Request) -> Response:
        del request
        return Response(self.runtime.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    async def _serve(
        self,
        request: Request,
        tasks: tuple[str, ...],
        size: negotiate.Size,
        render: Callable[[Prediction, Prepared], Answer],
        *,
        keep_image: bool = False,
    ) -> Served:
        limit = self.runtime.settings.max_bytes
        work = Work(
            read=lambda: read_photo(request.headers, request.stream(), limit),
            receive=request.receive,
            size_hint=body_size(request.headers, limit),
            deadline=self.runtime.deadline(request),
            held=request.state.held,
            tasks=tasks,
            size=size,
            render=render,
            keep_image=keep_image,
        )
        return await self.runtime.serve(work)


def _answer(served: Served, media_type: str, filename: str) -> Response:
    photo = served.photo
    return PiecesResponse(
        served.value,
        media_type=media_type,
        headers={
            "Server-Timing": server_timing(served),
            "Content-Disposition": f'inline; filename="{filename}"',
            # For formats that hold arrays alone.
            "X-Photo": f"width={photo.width}, height={photo.height}, orientation={photo.orientation}",
        },
    )


def _probes(runtime: Runtime) -> list[BaseRoute]:
    """The probes as BentoML has them, for a server without it."""

    async def live(request: Request) -> Response:
        del request
        return PlainTextResponse("\n", status_code=200 if runtime.alive() else 503)

    async def ready(request: Request) -> Response:
        del request
        if not runtime.ready():
            raise NotReady(f"the server is {runtime.state}; send photos to another", retry_after=2)
        return PlainTextResponse("\n")

    return [Route("/livez", live), Route("/healthz", live), Route("/readyz", ready)]


async def _problem_page(request: Request) -> Response:
    return problems.problem_page(request.path_params["code"])


async def _refused(request: Request, error: Exception) -> Response:
    return problems.problem_response(error, request.state.request_id)


async def _left(request: Request, error: Exception) -> Response:
    """Nobody reads this answer; 499 is what the log shows."""
    del request, error
    return Response(status_code=499)
