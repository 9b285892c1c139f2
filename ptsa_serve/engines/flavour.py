"""TensorRT's Python API, which more than one runtime has: what those differ by, and how one is imported."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ptsa_serve.engines.base import first_line
from ptsa_serve.errors import EngineError

__all__ = ["Flavour", "Imported"]


@dataclass(frozen=True, slots=True)
class Flavour:
    """One runtime with this API.

    name: key of its engine. title: for messages. module: to import. oldest: version. install: how, for messages.
    portable: its plans run on many kinds of GPU and are built without any; others fit the kind that they were built on.
    captures: whether its work is captured as a CUDA graph by us (else by itself). context: makes an execution context,
    of (module, engine), that takes its memory from us.
    """

    name: str
    title: str
    module: str
    oldest: tuple[int, ...]
    install: str
    portable: bool
    captures: bool
    context: Callable[[Any, Any], Any]

    def load(self) -> "Imported":
        """Raises EngineError if the runtime is missing, too old, or cannot be used here."""
        try:
            module = importlib.import_module(self.module)
        except Exception as error:  # its own package looks for libraries and drivers, and fails in many ways
            raise EngineError(f"{self.title} cannot be imported ({first_line(error)}); {self.install}") from error
        version = str(module.__version__)
        numbers = tuple(int(part) for part in version.split(".")[: len(self.oldest)] if part.isdigit())
        if numbers < self.oldest:
            wanted = ".".join(map(str, self.oldest))
            raise EngineError(f"{self.title} {version} is too old, it must be {wanted} or newer; {self.install}")
        return Imported(self, module, version, _log(module))


@dataclass(frozen=True, slots=True)
class Imported:
    """A runtime that is there. api: its module. log: its logger, whose `errors` are what it complained of."""

    flavour: Flavour
    api: Any
    version: str
    log: Any

    @property
    def title(self) -> str:
        return f"{self.flavour.title} {self.version}"

    def complaint(self) -> str:
        """The first error since the last call, or what to say without any; forgets all of them."""
        # What a machine without GPU adds to every error explains nothing.
        errors = [text for text in self.log.errors if "catchCudaError" not in text] or self.log.errors
        text = errors[0] if errors else "it gives no reason"
        self.log.errors.clear()
        return " ".join(text.split())[:400]


def _log(api: Any) -> Any:
    class Log(api.ILogger):
        """Keeps errors for our own messages; the rest is the runtime talking to itself."""

        def __init__(self) -> None:
            api.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            if severity <= api.ILogger.Severity.ERROR:
                self.errors.append(msg)

    return Log()
