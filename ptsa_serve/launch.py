"""What `ptsa serve` hands over to `bentoml serve`: an address, an environment, and a folder without code in it."""

import errno
import os
import socket
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from ptsa_serve.errors import SettingsError
from ptsa_serve.settings import PREFIX, Settings

__all__ = ["command", "environment", "find_address"]

_PACKAGE = Path(__file__).absolute().parent
# BentoML imports from its working folder before all others. The user's may hold a random.py; this one holds no Python.
_FOLDER = _PACKAGE / "ui"
_BENTOML_FOLDERS = ("bentos", "models", "envs", "tmp")


def command(service: str, host: str, port: int) -> list[str]:
    """The arguments for the interpreter."""
    return ["-m", "bentoml", "serve", service, "--working-dir", str(_FOLDER), "--host", host, "--port", str(port)]


def environment(environ: Mapping[str, str], settings: Settings) -> dict[str, str]:
    """`environ` with what BentoML reads before our service is imported; no path in it depends on the current folder.

    Raises SettingsError where no folder can be written to.
    """
    temporary = _temporary_folder()
    paths = {name: value for name in Settings.model_fields if isinstance(value := getattr(settings, name), Path)}
    absolute = {f"{PREFIX}{name.upper()}": str(value.absolute()) for name, value in paths.items()}
    if config := environ.get("BENTOML_CONFIG"):
        absolute["BENTOML_CONFIG"] = str(Path(config).absolute())
    return {
        # glibc keeps a heap for each thread, and on a busy machine the model's
        # buffers wander through them: 608 MB resident with two heaps, 527 at most in 2,000 requests with one; no slower
        # by `python -m benchmarks requests` and `load`.
        "MALLOC_ARENA_MAX": "1",
        **environ,
        **absolute,
        "BENTOML_HOME": _bentoml_home(environ, temporary),
        "TMPDIR": temporary,
        "PYTHONPATH": _import_path(environ),
        # The current folder stays off the import path, in BentoML's workers too.
        "PYTHONSAFEPATH": "1",
    }


def find_address(host: str, port: int) -> str:
    """The IP address of `host` that a server can listen on at `port`; BentoML takes no names.

    Raises SettingsError, saying which of the two to change.
    """
    advice = "use 127.0.0.1 for this machine alone, 0.0.0.0 for all networks, or an address or name of this machine"
    try:
        # An empty name would mean whatever the system likes best.
        found = socket.getaddrinfo(host or ".", port, type=socket.SOCK_STREAM)
    except (OSError, ValueError):
        raise SettingsError(f"--host {host!r} is no address of this machine; {advice}") from None
    faults = []
    # IPv4 first: that is where people look for localhost.
    for family, kind, protocol, _, (address, *_) in sorted(found, key=lambda info: info[0] != socket.AF_INET):
        try:
            with socket.socket(family, kind, protocol) as probe:
                # As servers set it: a port in TIME_WAIT after a restart is free.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((address, port))
                probe.listen()
                return str(address)
        except OSError as error:
            faults.append(error)
    if isinstance(faults[0], PermissionError):
        raise SettingsError(f"port {port} is for the administrator; use one above 1023")
    if faults[0].errno == errno.EADDRINUSE:
        raise SettingsError(f"cannot listen on {host}:{port} ({faults[0].strerror}); choose another with --port")
    raise SettingsError(f"cannot listen on {host}:{port} ({faults[0].strerror}); {advice}")


def _import_path(environ: Mapping[str, str]) -> str:
    """PYTHONPATH without the current folder that empty entries stand for; with this package where it is no part of an
    installation, so that the server runs the code that started it.
    """
    entries = [str(Path(entry).absolute()) for entry in environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    home = str(_PACKAGE.parent)
    return os.pathsep.join(entries if home in sys.path else [home, *entries])


def _temporary_folder() -> str:
    """Where temporary files can be written."""
    try:
        return tempfile.gettempdir()
    except FileNotFoundError:
        # A container with a read-only root still has this one.
        if os.access("/dev/shm", os.W_OK):
            return "/dev/shm"
    raise SettingsError("found no folder that can be written to; mount one, and name it in TMPDIR")


def _bentoml_home(environ: Mapping[str, str], temporary: str) -> str:
    """Where BentoML keeps its files: BENTOML_HOME or ~/bentoml as always, where that works; else a temporary folder."""
    home = Path(os.path.expandvars(environ.get("BENTOML_HOME", "")) or Path("~/bentoml"))
    try:
        home = home.expanduser().absolute()
        for name in _BENTOML_FOLDERS:
            (home / name).mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: this user has no home folder at all
        return tempfile.mkdtemp(prefix="ptsa-serve-", dir=temporary)
    return str(home)
