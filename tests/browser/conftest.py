"""Chromium and a server for the page."""

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from ptsa_serve.http.app import create_app
from ptsa_serve.http.runtime import Runtime
from ptsa_serve.settings import Settings

# A browser of the system: Playwright's own download is not needed. CHROMIUM names another.
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# No sandbox (containers have none), and none of the talk with Google that a test has no use for.
_ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

Serve = Callable[..., AbstractContextManager[str]]


@pytest.fixture(scope="session")
def browser():
    """A real Chromium; the tests are skipped without one."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, _NAMES)), None)
    if path is None:
        pytest.skip(f"needs a Chromium: none of {', '.join(_NAMES)} is on PATH, and CHROMIUM is not set")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=list(_ARGUMENTS))
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def serve(tiny_artifact: Path) -> Serve:
    """`with serve(PTSA_API_KEY="...") as url:` runs a server with those settings."""

    @contextmanager
    def start(**environ: str) -> Iterator[str]:
        runtime = Runtime(Settings.load({"PTSA_MODEL": str(tiny_artifact), "PTSA_THREADS": "1", **environ}))
        with run_app(create_app(runtime)) as address:
            yield address

    return start


@pytest.fixture(scope="session")
def running() -> Callable[..., AbstractContextManager[str]]:
    """`with running(app) as url:` runs any ASGI app."""
    return run_app


@contextmanager
def run_app(app: Any) -> Iterator[str]:
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, lifespan="on"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)


@pytest.fixture(scope="session")
def url(serve: Serve) -> Iterator[str]:
    with serve() as address:
        yield address


@pytest.fixture
def page(browser, url: str):
    """The page, open; the test fails if it logs an error, breaks its policy or asks another host for anything."""
    opened = browser.new_page(viewport={"width": 1400, "height": 900})
    faults: list[str] = []
    opened.on("pageerror", lambda error: faults.append(str(error)))
    opened.on("console", lambda message: faults.append(message.text) if "Content Security" in message.text else None)
    opened.on("request", lambda request: None if request.url.startswith((url, "blob:")) else faults.append(request.url))
    opened.goto(f"{url}/ui")
    opened.wait_for_selector("#model:has-text('ptsa-tiny')")
    yield opened
    opened.close()
    assert faults == []
