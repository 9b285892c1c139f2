"""Fixtures of the command line's tests: `ptsa` in this process, and a photo on disk."""

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ptsa_serve import cli


@pytest.fixture
def ptsa(tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch):
    """Run a command on the tiny model, in process."""
    for name in list(os.environ):
        if name.startswith("PTSA_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PTSA_MODEL", str(tiny_artifact))

    def run(*arguments: object) -> Result:
        result = CliRunner().invoke(cli.main, [str(argument) for argument in arguments])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        assert "Traceback" not in result.output
        return result

    return run


@pytest.fixture
def photo(tmp_path: Path, photo_jpeg: bytes) -> Path:
    path = tmp_path / "in" / "kitchen.jpg"
    path.parent.mkdir()
    path.write_bytes(photo_jpeg)
    return path


@pytest.fixture
def free_port() -> Callable[[], int]:
    """Gives ports that nobody listens on."""

    def find() -> int:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            return taken.getsockname()[1]

    return find


@pytest.fixture
def until() -> Callable[[Callable[[], bool]], None]:
    """`until(condition)` waits until it holds, for 30 seconds at most."""

    def wait(condition: Callable[[], bool]) -> None:
        end = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < end, "the condition did not come to hold"
            time.sleep(0.005)

    return wait
