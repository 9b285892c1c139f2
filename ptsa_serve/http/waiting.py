"""Who answers between the opening of the port and the first accept of the worker: `not-ready`, instead of nobody.

BentoML's supervisor opens the port, then starts the worker, which imports for a second or more; connections would hang
meanwhile. So a thread of the supervisor accepts on the same socket until the worker says that it does.
"""

import os
import socket
import threading

import uvicorn
from starlette.types import ASGIApp

__all__ = ["WaitingRoom"]


class WaitingRoom:
    """`app` on the first socket that BentoML's supervisor opens, until `close`."""

    def __init__(self, app: ASGIApp) -> None:
        config = uvicorn.Config(app, lifespan="off", log_config=None, log_level="critical", timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        self._opened = False

    def watch(self) -> None:
        """Open as soon as the supervisor listens; it keeps its sockets to itself, hence the look over its shoulder."""
        from circus.sockets import CircusSocket

        listen, opened = CircusSocket.bind_and_listen, self._open

        def bind_and_listen(self: CircusSocket) -> None:
            listen(self)
            opened(socket.socket(fileno=os.dup(self.fileno())))

        CircusSocket.bind_and_listen = bind_and_listen

    def close(self) -> None:
        """Accept nothing more; what is being answered is finished."""
        self._server.should_exit = True

    def _open(self, listening: socket.socket) -> None:
        if not self._opened:
            self._opened = True
            threading.Thread(target=self._server.run, args=([listening],), name="ptsa-waiting", daemon=True).start()
