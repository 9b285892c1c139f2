"""The Open Inference Protocol (KServe v2) over the same queue: tensors in at one of the model's sizes, tensors out."""

from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from ptsa_serve import __version__
from ptsa_serve.errors import NotReady, UnknownModel
from ptsa_serve.http import tensors
from ptsa_serve.http.answers import PiecesResponse
from ptsa_serve.http.body import body_size, read_body
from ptsa_serve.http.runtime import Runtime
from ptsa_serve.http.work import TensorWork
from ptsa_serve.tasks import KINDS

__all__ = ["routes"]

Handler = Callable[[Request], Awaitable[Response]]


def routes(runtime: Runtime) -> list[BaseRoute]:
    """All routes under /v2."""
    v2 = _Version2(runtime)
    found: list[BaseRoute] = [
        Route("/v2", v2.server, methods=["GET"]),
        Route("/v2/health/live", v2.live, methods=["GET"]),
        Route("/v2/health/ready", v2.ready, methods=["GET"]),
    ]
    for model in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
        found += [
            Route(model, v2.of_model(v2.metadata), methods=["GET"]),
            Route(f"{model}/ready", v2.of_model(v2.model_ready), methods=["GET"]),
            Route(f"{model}/infer", v2.of_model(v2.infer), methods=["POST"]),
        ]
    return found


class _Version2:
    """The handlers."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime

    def of_model(self, handler: Handler) -> Handler:
        """`handler`, for the name and version of the loaded model alone."""

        async def checked(request: Request) -> Response:
            manifest = self.runtime.predictor.artifact.manifest
            name, version = request.path_params["name"], request.path_params.get("version", manifest.version)
            if name != manifest.name:
                raise UnknownModel(name, [manifest.name])
            if version != manifest.version:
                raise UnknownModel(f"{name}@{version}", [self.runtime.model])
            return await handler(request)

        return checked

    async def server(self, request: Request) -> Response:
        del request
        return JSONResponse({"name": "ptsa-serve", "version": __version__, "extensions": ["binary_tensor_data"]})

    async def live(self, request: Request) -> Response:
        del request
        return JSONResponse({"live": self.runtime.alive()}, status_code=200 if self.runtime.alive() else 503)

    async def ready(self, request: Request) -> Response:
        del request
        self._check_ready()
        return JSONResponse({"ready": True})

    async def model_ready(self, request: Request) -> Response:
        del request
        self._check_ready()
        return JSONResponse({"name": self.runtime.predictor.artifact.manifest.name, "ready": True})

    def _check_ready(self) -> None:
        if not self.runtime.ready():
            raise NotReady(f"the server is {self.runtime.state}; send photos to another", retry_after=2)

    async def metadata(self, request: Request) -> Response:
        del request
        manifest, sizes = self.runtime.predictor.artifact.manifest, self.runtime.predictor.engine.sizes
        outputs: list[dict[str, Any]] = []
        for name, task in self.runtime.predictor.tasks.items():
            dtype, trailing = KINDS[task.kind]
            outputs.append({"name": name, "datatype": tensors.datatype(dtype), "shape": [-1, -1, -1, *trailing]})
        image = {"name": tensors.INPUT, "datatype": "UINT8", "shape": [-1, -1, -1, 3]}
        return JSONResponse(
            {
                "name": manifest.name,
                "versions": [manifest.version],
                "platform": f"ptsa_{self.runtime.predictor.engine.name}",
                "inputs": [image],
                "outputs": outputs,
                # Beyond the protocol, which cannot say that only some heights and widths are taken.
                "parameters": {"sizes": [list(size) for size in sizes], "any_size": sizes.rule and asdict(sizes.rule)},
            }
        )

    async def infer(self, request: Request) -> Response:
        runtime, limit = self.runtime, self.runtime.settings.max_bytes
        sizes, tasks = runtime.predictor.engine.sizes, tuple(runtime.predictor.tasks)
        length = request.headers.get(tensors.HEADER)
        work = TensorWork(
            read=lambda: read_body(request.headers, request.stream(), limit),
            receive=request.receive,
            # Numbers as text become lists of objects on their way to an array.
            size_hint=body_size(request.headers, limit) * (2 if length else 10),
            deadline=runtime.deadline(request),
            held=request.state.held,
            parse=lambda body: tensors.parse(body, length, sizes, tasks),
            bytes_per_pixel=tensors.bytes_per_pixel,
        )
        parsed, maps = await runtime.serve_tensors(work)
        manifest = runtime.predictor.artifact.manifest
        pieces, text = await runtime.in_pool(lambda: tensors.answer(parsed, maps, manifest.name, manifest.version))
        if text is None:
            return PiecesResponse(pieces, media_type="application/json", headers={})
        return PiecesResponse(pieces, media_type="application/octet-stream", headers={tensors.HEADER: str(text)})
