"""A real server process for the time of a benchmark."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

__all__ = ["Server", "running_server"]


@dataclass(frozen=True)
class Server:
    """Where it answers, and its process."""

    url: str
    process: psutil.Process

    def resident_mb(self) -> float:
        """Resident memory of the process that holds the model (the largest of the tree), in MB of 10^6 bytes."""
        return self._largest().memory_info().rss / 1e6

    def peak_mb(self) -> float | None:
        """The most that this was at any time, the start included; None where the system does not tell (not Linux)."""
        status = Path(f"/proc/{self._largest().pid}/status")
        return int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024 / 1e6 if status.exists() else None

    def _largest(self) -> psutil.Process:
        return max([self.process, *self.process.children(recursive=True)], key=lambda p: p.memory_info().rss)


@contextmanager
def running_server(**settings: str) -> Iterator[Server]:
    """`ptsa serve` on a free port with PTSA_* settings, ready; stopped on leaving. Raises RuntimeError if it exits."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, **settings, "BENTOML_DO_NOT_TRACK": "true"}
    command = [sys.executable, "-m", "ptsa_serve", "serve", "--port", str(port)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_until_ready(url, process)
        yield Server(url, psutil.Process(process.pid))
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def _wait_until_ready(url: str, process: subprocess.Popen, timeout: float = 120) -> None:
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        if process.poll() is not None:
            raise RuntimeError(f"`ptsa serve` ended with code {process.returncode}; run it by hand to see why")
        try:
            if httpx.get(f"{url}/readyz", timeout=2).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
    raise RuntimeError(f"the server was not ready after {timeout:.0f} s")
