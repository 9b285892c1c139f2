"""Every error this package raises on purpose.

    PTSAError
    ├── SettingsError          a PTSA_* variable or a flag has no valid value
    ├── ManifestError          manifest.json is not a "ptsa/1" manifest
    ├── ArtifactError          a model folder is missing, incomplete or changed
    ├── EngineError            the runtime is missing, or refused the model
    ├── TreeError              groups of tasks that are no task tree
    └── RequestError           one request cannot be answered: an HTTP status and a code, explained at /problems/{code}
        ├── BadImage 400           ├── UnknownTask 404            ├── TooManyRequests 429
        ├── MissingImage 400       ├── UnknownModel 404           ├── Overloaded 503
        ├── BadMultipart 400       ├── NotFound 404               ├── NotReady 503
        ├── Unauthorized 401       ├── MethodNotAllowed 405       ├── ShuttingDown 503
        ├── BadParameter 422       ├── NotAcceptable 406          ├── DeadlineExceeded 504
        ├── TooLarge 413           └── UnsupportedMediaType 415   └── Internal 500

A message says what was found, what is allowed and what to do. It may be shown to the caller as it is: never a
path of the server in a RequestError, never a library's own words.
"""

# ruff: noqa: N818 - the names are the codes of the HTTP contract, in words; `bad-image` is `BadImage`.

import math
from collections.abc import Iterable, Mapping
from typing import ClassVar

__all__ = [
    "REQUEST_ERRORS",
    "ArtifactError",
    "BadImage",
    "BadMultipart",
    "BadParameter",
    "DeadlineExceeded",
    "EngineError",
    "Internal",
    "ManifestError",
    "MethodNotAllowed",
    "MissingImage",
    "NotAcceptable",
    "NotFound",
    "NotReady",
    "Overloaded",
    "PTSAError",
    "RequestError",
    "SettingsError",
    "ShuttingDown",
    "TooLarge",
    "TooManyRequests",
    "TreeError",
    "Unauthorized",
    "UnknownModel",
    "UnknownTask",
    "UnsupportedMediaType",
]


class PTSAError(Exception):
    """The root: `except PTSAError` catches every failure that this package foresees."""


class SettingsError(PTSAError):
    """A setting has a value outside what is allowed, or an unknown PTSA_* variable is set."""


class ManifestError(PTSAError):
    """A manifest that cannot be read: another format version, a field missing or of the wrong type."""


class ArtifactError(PTSAError):
    """A model folder that is not there, not whole, or not what its manifest says."""


class EngineError(PTSAError):
    """A runtime that is not installed, cannot be used here, or failed to run the model."""


class TreeError(PTSAError, ValueError):
    """Groups of tasks that miss or repeat a task, or that join what was apart."""


class RequestError(PTSAError):
    """One request cannot be answered.

    Attributes:
        status: HTTP status. code: the last part of the problem's type URI. title: the code in words.
        detail: what was found, what is allowed, what to do. headers: to send with the answer.
        parameter, allowed: the query parameter at fault and its values (None where no parameter is).
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"
    title: ClassVar[str] = "Internal error"

    def __init__(
        self,
        detail: str,
        *,
        headers: Mapping[str, str] | None = None,
        parameter: str | None = None,
        allowed: Iterable[str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.headers = dict(headers or {})
        self.parameter = parameter
        self.allowed = None if allowed is None else tuple(allowed)


class BadImage(RequestError):
    """Bytes that do not decode: no image, truncated or damaged."""

    status, code, title = 400, "bad-image", "The image cannot be decoded"


class MissingImage(RequestError):
    """No part named `image`, more than one, or an empty body."""

    status, code, title = 400, "missing-image", "No image in the request"


class BadMultipart(RequestError):
    """A multipart body that does not parse."""

    status, code, title = 400, "bad-multipart", "The multipart body is damaged"


class Unauthorized(RequestError):
    """The service wants an API key, and the request has none or another."""

    status, code, title = 401, "unauthorized", "An API key is needed"

    def __init__(self, detail: str) -> None:
        super().__init__(detail, headers={"WWW-Authenticate": 'Bearer realm="ptsa"'})


class _UnknownName(RequestError):
    """A name that is not served; `allowed` lists those that are."""

    status: ClassVar[int] = 404
    noun: ClassVar[str]

    def __init__(self, name: str, allowed: Iterable[str], *, parameter: str | None = None) -> None:
        names = tuple(allowed)
        detail = f"there is no {self.noun} {name[:64]!r}; use one of: {', '.join(names)}"
        super().__init__(detail, parameter=parameter, allowed=names)


class UnknownTask(_UnknownName):
    """A task that the model does not have: `UnknownTask(name, tasks_that_exist)`."""

    code, title, noun = "unknown-task", "No such task", "task"


class UnknownModel(_UnknownName):
    """A model that is not loaded: `UnknownModel(name, models_that_are)`."""

    code, title, noun = "unknown-model", "No such model", "model"


class NotFound(RequestError):
    """No such path."""

    status, code, title = 404, "not-found", "Not found"


class MethodNotAllowed(RequestError):
    """The path exists, not with this method."""

    status, code, title = 405, "method-not-allowed", "Method not allowed"

    def __init__(self, method: str, allowed: Iterable[str]) -> None:
        methods = ", ".join(sorted(allowed))
        super().__init__(f"this path does not take {method[:16]}; use {methods}", headers={"Allow": methods})


class NotAcceptable(RequestError):
    """`Accept` names no type that this path can answer with."""

    status, code, title = 406, "not-acceptable", "Not acceptable"

    def __init__(self, accept: str, types: Iterable[str]) -> None:
        types = tuple(types)
        found = f"Accept is {accept[:100]!r}, which names none of the types there are: {', '.join(types)}"
        super().__init__(f"{found}; send one of them, or */*", allowed=types)


class TooLarge(RequestError):
    """A body with too many bytes, or a photo with too many pixels."""

    status, code, title = 413, "too-large", "Too large"


class UnsupportedMediaType(RequestError):
    """A Content-Type that can hold no photo, or an image format that is not read."""

    status, code, title = 415, "unsupported-media-type", "Unsupported media type"


class BadParameter(RequestError):
    """An unknown query parameter or header value, or a photo with a side too short or too long."""

    status, code, title = 422, "bad-parameter", "A parameter is not allowed"


class _TryLater(RequestError):
    """Refused for now; `retry_after` (seconds, rounded up to at least 1) goes into Retry-After."""

    status: ClassVar[int] = 503

    def __init__(self, detail: str, *, retry_after: float = 1.0) -> None:
        super().__init__(detail, headers={"Retry-After": str(max(1, math.ceil(retry_after)))})
        self.retry_after = retry_after


class TooManyRequests(_TryLater):
    """One client's quota is used up."""

    status, code, title = 429, "too-many-requests", "Too many requests"


class Overloaded(_TryLater):
    """The queue is full; nothing was computed."""

    code, title = "overloaded", "The service is overloaded"


class NotReady(_TryLater):
    """The model is still loading, or failed its check."""

    code, title = "not-ready", "The service is not ready"


class ShuttingDown(_TryLater):
    """The service drains and takes no new work."""

    code, title = "shutting-down", "The service is shutting down"


class DeadlineExceeded(RequestError):
    """X-Deadline-Ms, or the server's own limit, passed before the answer was there."""

    status, code, title = 504, "deadline-exceeded", "The deadline passed"


class Internal(RequestError):
    """A defect of ours; the log has the request id."""

    status, code, title = 500, "internal", "Internal error"

    def __init__(
        self, detail: str = "the service failed on this request; its log says why, under the request id"
    ) -> None:
        super().__init__(detail)


# Every code of the contract, for the problem pages and the tests that compare them with the documentation.
REQUEST_ERRORS: dict[str, type[RequestError]] = {
    error.code: error
    for error in (
        BadImage,
        MissingImage,
        BadMultipart,
        Unauthorized,
        UnknownTask,
        UnknownModel,
        NotFound,
        MethodNotAllowed,
        NotAcceptable,
        TooLarge,
        UnsupportedMediaType,
        BadParameter,
        TooManyRequests,
        Overloaded,
        NotReady,
        ShuttingDown,
        DeadlineExceeded,
        Internal,
    )
}
