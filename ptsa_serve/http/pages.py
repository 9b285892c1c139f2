"""What people see in a browser: the page at /ui, its photos, and the way there."""

import json
from importlib import resources
from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, RedirectResponse, Response

from ptsa_serve.errors import NotFound
from ptsa_serve.http.negotiate import accepted

__all__ = ["CSP", "index", "ui_file", "ui_page"]

# Nothing but this server: no script, style, font or photo from elsewhere, nothing inline, no frame around the page.
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "form-action 'none'; base-uri 'self'; frame-ancestors 'none'"
)

_TYPES = {".css": "text/css", ".js": "text/javascript", ".jpg": "image/jpeg", ".svg": "image/svg+xml"}
_HEADERS = {"Content-Security-Policy": CSP, "Referrer-Policy": "no-referrer", "Cache-Control": "no-cache"}


_BASE = '<base href="ui/">'


def ui_folder() -> Path:
    """The folder of the page inside the installed package."""
    return Path(str(resources.files("ptsa_serve"))) / "ui"


def samples() -> list[str]:
    """Names of the sample photos that the page offers, in order."""
    return sorted(path.name for path in (ui_folder() / "samples").glob("*.jpg"))


async def index(request: Request) -> Response:
    """`/`: browsers are led to the page, programs are told where things are."""
    if "text/html" in accepted(request.headers):
        # Relative, as every address of the page: below a proxy's prefix "/ui" would be another service's.
        return RedirectResponse("ui", status_code=302)
    paths = {"predict": "/v1/predict", "models": "/v1/models", "page": "/ui", "schema": "/docs.json"}
    return JSONResponse({"service": "ptsa-serve", **paths})


async def ui_page(request: Request) -> Response:
    """`/ui` and `/ui/`: the page itself, its addresses relative to the folder `ui/` in both."""
    page = (ui_folder() / "index.html").read_text(encoding="utf-8")
    base = "./" if request.url.path.endswith("/") else "ui/"
    return Response(page.replace(_BASE, f'<base href="{base}">'), media_type="text/html", headers=_HEADERS)


async def ui_file(request: Request) -> Response:
    """`/ui/...`: what the page is made of, from a closed set of names; `samples.json` lists the photos."""
    name = request.path_params["name"]
    if name == "samples.json":
        return Response(json.dumps(samples()), media_type="application/json", headers=_HEADERS)
    files = {path.name for path in ui_folder().iterdir() if path.suffix in _TYPES}
    files |= {f"samples/{photo}" for photo in samples()}
    if name not in files:
        raise NotFound("the page has no such file; it is at /ui")
    path = ui_folder() / name
    return FileResponse(path, media_type=_TYPES[path.suffix], headers=_HEADERS)
