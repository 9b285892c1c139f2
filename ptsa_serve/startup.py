"""Starting and ending under BentoML's supervisor: faults end the process with one sentence, SIGTERM drains first.

BentoML starts a worker again whenever it ends, so a fault that lasts (no model, a wrong setting) would loop for ever
with a port that hangs. So the supervisor checks what it can before it opens the port, answers `not-ready` until the
worker does, and a worker that still cannot start tells the supervisor to end too.
"""

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from ptsa_serve.errors import Internal, PTSAError
from ptsa_serve.http.app import waiting_app
from ptsa_serve.http.runtime import Runtime
from ptsa_serve.http.waiting import WaitingRoom
from ptsa_serve.loading import open_artifact
from ptsa_serve.settings import Settings

__all__ = ["check", "die", "drain_on_sigterm", "read_settings", "start_worker"]

log = logging.getLogger(__name__)

# Where the supervisor leaves its process id for the worker; not PTSA_*, which are the operator's.
_SUPERVISOR = "_PTSASERVE_SUPERVISOR"


def read_settings() -> Settings:
    """The settings of this process; ends it with one sentence when they are wrong."""
    try:
        return Settings.load()
    except PTSAError as error:
        die(error)


def check(runtime: Runtime) -> None:
    """In the supervisor, before the port opens: every file of the model is there and unchanged.

    Ends the process with one sentence when not. Also lets a worker that cannot start end this process, and answers for
    the worker until it is there; `runtime` is the supervisor's own and never starts.
    """
    try:
        open_artifact(runtime.settings)
    except PTSAError as error:
        die(error)
    if threading.current_thread() is threading.main_thread():
        room = WaitingRoom(waiting_app(runtime))
        room.watch()
        signal.signal(signal.SIGUSR1, _end)
        signal.signal(signal.SIGUSR2, lambda number, frame: room.close())
        os.environ[_SUPERVISOR] = str(os.getpid())


async def start_worker(runtime: Runtime, service: str) -> None:
    """In the worker: load, verify and warm the model beside the event loop, which answers `not-ready` meanwhile.

    Ends worker and supervisor with one sentence when it fails.
    """
    logging.getLogger("ptsa_serve").setLevel(logging.INFO)
    _tell_supervisor(signal.SIGUSR2)
    await asyncio.to_thread(_load, runtime)
    _announce(runtime, service)


def _load(runtime: Runtime) -> None:
    try:
        runtime.start()
    except Exception as error:
        if not isinstance(error, PTSAError):
            log.exception("the model cannot be loaded, by a defect of ours")
            error = Internal()
        _tell_supervisor(signal.SIGUSR1)
        die(error)


def _tell_supervisor(number: signal.Signals) -> None:
    """SIGUSR1: the worker cannot start. SIGUSR2: it is there and answers."""
    if os.environ.get(_SUPERVISOR) == str(os.getppid()):
        os.kill(os.getppid(), number)


def _announce(runtime: Runtime, service: str) -> None:
    """Log what is served, where and within which limits."""
    info = runtime.info()
    address = json.loads(os.environ.get("BENTOML_RUNNER_MAP", "{}")).get(service, "http://localhost:3000")
    settings = runtime.settings.describe()
    log.info("%s serves %s on %s", runtime.model, ", ".join(runtime.predictor.tasks), info["engine"])
    log.info("settings: %s", ", ".join(f"{name}={value}" for name, value in settings.items()))
    log.info("photos to %s/v1/predict, page for people at %s/ui", address, address)


def drain_on_sigterm(runtime: Runtime, grace: float) -> None:
    """On SIGTERM refuse new photos with 503, finish those that are in, then let the server end.

    Without this the port, which belongs to the supervisor, would take connections that nobody answers. Waits `grace`
    seconds at most. Must be called on the event loop of the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    before = signal.getsignal(signal.SIGTERM)
    loop = asyncio.get_running_loop()
    draining: list[asyncio.Task[None]] = []

    async def drain(number: int) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace):
                while not runtime.idle:
                    await asyncio.sleep(0.02)
        if callable(before):
            before(number, None)
        else:
            raise SystemExit(0)

    def received(number: int, frame: FrameType | None) -> None:
        del frame
        runtime.drain()
        start: Callable[[], None] = lambda: draining.append(loop.create_task(drain(number)))  # noqa: E731
        if not draining:
            loop.call_soon_threadsafe(start)

    signal.signal(signal.SIGTERM, received)


def die(error: PTSAError) -> NoReturn:
    """End the process with exit status 1 and one sentence on the error output."""
    sys.stderr.write(f"ptsa-serve cannot start: {error}\n")
    sys.stderr.flush()
    # Not sys.exit: BentoML and the event loop would wrap it into tracebacks of their own.
    logging.shutdown()
    os._exit(1)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    """The worker said why on the error output before it sent the signal."""
    del number, frame
    os._exit(1)
