"""A client of the HTTP contract that returns what the server computed: the same `Prediction`, the same errors."""

import functools
import io
import random
import re
import time
import urllib.request
from collections.abc import Collection
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import httpx
import numpy as np
from pydantic import ValidationError

from ptsa_serve.errors import REQUEST_ERRORS, Internal, PTSAError, RequestError, SettingsError
from ptsa_serve.manifest import TaskRecord
from ptsa_serve.prediction import PhotoInfo, Prediction
from ptsa_serve.tasks import Task

__all__ = ["AnswerError", "Client", "UnreachableError"]

# Longest wait that a Retry-After may ask for; beyond it the error is the caller's to handle (seconds).
_LONGEST_WAIT = 60.0


class UnreachableError(PTSAError):
    """No server answered: not running, another address, or the connection broke."""


class AnswerError(UnreachableError):
    """Something answered that is no server of the contract: a proxy, a login page, another program."""


class Client:
    """Sends photos to a server; usable as a context manager, from several threads.

    url: of the server, "http://localhost:3000", with the path of a proxy if there is one. api_key: where the server
    wants one. timeout: seconds for one exchange. retries: how often a 503 (overloaded, starting, shutting down) is
    tried again, after Retry-After. Proxies come from HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY. Redirects are
    not followed: they would take photo and key to another place.

    Raises UnreachableError for an address or a proxy that no request could go to, SettingsError for other values that
    none could be made with.
    """

    def __init__(self, url: str, *, api_key: str | None = None, timeout: float = 60.0, retries: int = 4) -> None:
        if retries < 0 or not timeout > 0:
            raise SettingsError(f"retries is {retries} and timeout {timeout}; use 0 or more, and seconds above 0")
        address = _checked_url(url)
        self._url = str(address.copy_with(username=None, password=None))
        headers = {"Authorization": f"Bearer {_checked_key(api_key)}"} if api_key else {}
        self._http = _connections(address, headers=headers, timeout=timeout)
        self._retries = retries
        self._tasks: dict[str, Task] = {}

    def predict(
        self,
        photo: bytes | Path | str,
        *,
        tasks: Collection[str] | None = None,
        size: Literal["photo", "model"] = "photo",
        deadline_ms: int | None = None,
    ) -> Prediction:
        """All maps of `photo` (its bytes, or the path of a file), or those that `tasks` names.

        Raises:
            RequestError: what the server answered, as the class of its code (BadImage, TooLarge, Overloaded, ...).
            UnreachableError: no answer came. AnswerError: the answer is not from such a server.
            OSError: the file cannot be read.
        """
        data = photo if isinstance(photo, bytes) else Path(photo).read_bytes()
        query = {"format": "npz", "size": size} | ({"tasks": ",".join(tasks)} if tasks is not None else {})
        headers = {"Content-Type": "application/octet-stream"}
        if deadline_ms is not None:
            headers["X-Deadline-Ms"] = str(deadline_ms)
        answer = self._send("POST", "/v1/predict", params=query, content=data, headers=headers)
        return self._prediction(answer)

    def models(self) -> list[dict[str, Any]]:
        """What /v1/models says of the models that are loaded: tasks, limits, parity. Raises as `predict`."""
        answer = self._send("GET", "/v1/models")
        try:
            models = answer.json()["models"]
        except (ValueError, KeyError, TypeError):
            models = None
        if not isinstance(models, list) or not all(isinstance(model, dict) for model in models):
            raise self._foreign(answer, "no list of models")
        return models

    def ready(self) -> bool:
        """Whether the server takes photos now; False when it cannot be reached."""
        try:
            return self._http.get("/readyz").status_code == 200
        except httpx.HTTPError:
            return False

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        left = self._retries
        while True:
            try:
                answer = self._http.request(method, path, **options)
            except httpx.HTTPError as error:
                why = f"{type(error).__name__}: {error}".rstrip(": ")
                advice = "check the address, the proxy variables and that the server runs"
                raise UnreachableError(f"no answer from {self._url} ({why}); {advice}") from error
            if answer.is_success:
                return answer
            if answer.status_code < 400:
                where = answer.headers.get("Location", "nowhere")
                raise AnswerError(
                    f"{self._url} answered {answer.status_code} and points to {where}; "
                    "if you trust that place, give the client its address"
                )
            wait = _retry_after(answer)
            if answer.status_code != 503 or not left or wait is None or wait > _LONGEST_WAIT:
                raise _error(answer)
            left -= 1
            # The server spreads its clients already; this spreads those that were refused in the same second.
            time.sleep(wait * random.uniform(1.0, 1.1))

    def _prediction(self, answer: httpx.Response) -> Prediction:
        try:
            with np.load(io.BytesIO(answer.content), allow_pickle=False) as file:
                maps = {name: file[name] for name in file.files}
            rows, columns = next(iter(maps.values())).shape[:2]
            width, height, orientation = (int(value) for value in re.findall(r"\d+", answer.headers["X-Photo"]))
            name, _, version = answer.headers["X-Model"].partition("@")
        except Exception as error:  # NumPy, zipfile and zlib have a dozen for bytes that are no npz, or half of one
            raise self._foreign(answer, "no maps") from error
        return Prediction(
            maps=maps,
            tasks=self._tasks_of(maps.keys()),
            photo=PhotoInfo(width, height, orientation),
            size=(rows, columns),
            model=(name, version),
            timings_ms={
                step: float(duration)
                for step, duration in re.findall(r"(\w+);dur=(\d+(?:\.\d+)?)", answer.headers.get("Server-Timing", ""))
            },
        )

    def _tasks_of(self, names: Collection[str]) -> dict[str, Task]:
        if not set(names) <= self._tasks.keys():
            try:
                records = [record for model in self.models() for record in model["tasks"]]
                self._tasks = {record["name"]: TaskRecord.model_validate(record).task() for record in records}
                missing = set(names) - self._tasks.keys()
            except (KeyError, TypeError, ValidationError):
                missing = set(names)
            if missing:
                raise AnswerError(f"{self._url} does not say what {', '.join(sorted(missing))} is; {_ADVICE}")
        return {name: self._tasks[name] for name in names}

    def _foreign(self, answer: httpx.Response, what: str) -> AnswerError:
        kind = answer.headers.get("Content-Type", "no type")
        found = f"{answer.status_code}, {kind[:64]}, {len(answer.content)} bytes"
        return AnswerError(f"{answer.url.path} of {self._url} answered with {what} ({found}); {_ADVICE}")


_ADVICE = "check that the address is that of a ptsa-serve and no proxy answers in its place"


def _checked_url(url: str) -> httpx.URL:
    advice = "write it like http://localhost:3000"
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise UnreachableError(f"{url!r} is no address ({error}); {advice}") from None
    if parsed.scheme not in ("http", "https") or not parsed.host or parsed.query or parsed.fragment:
        raise UnreachableError(f"{url!r} is no address of a server; {advice}")
    return parsed


def _checked_key(key: str) -> str:
    """The key without space around it, as of a file that ends in a line end."""
    if not re.fullmatch(r"[ -~]+", key.strip()):
        raise SettingsError("the API key holds letters that no header can carry; use ASCII")
    return key.strip()


def _connections(url: httpx.URL, **options: Any) -> httpx.Client:
    """Connections to `url`, by way of the proxy that the environment names for it.

    Chosen here: httpx stops at whatever it cannot use in any of those variables, if it is for other addresses too.
    """
    proxies = urllib.request.getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    # NO_PROXY may list an IPv6 address with brackets and without.
    if proxy is None or any(urllib.request.proxy_bypass(name) for name in (url.netloc.decode(), url.host)):
        proxy = None
    elif "://" not in proxy:
        proxy = f"http://{proxy}"
    try:
        return httpx.Client(base_url=url, transport=httpx.HTTPTransport(verify=_certificates(), proxy=proxy), **options)
    except (ImportError, ValueError, httpx.InvalidURL) as error:
        raise UnreachableError(
            f"the proxy that the environment names for {url.host} cannot be used ({error}); "
            "set HTTP_PROXY, HTTPS_PROXY or ALL_PROXY to an http address, or list the host in NO_PROXY"
        ) from error


# Reading them takes most of the time that a client takes to make.
_certificates = functools.cache(httpx.create_ssl_context)


def _retry_after(answer: httpx.Response) -> float | None:
    """Seconds to wait, of a number or a date; None where the header says neither."""
    value = answer.headers.get("Retry-After", "")
    if value.isdecimal():
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return None


def _error(answer: httpx.Response) -> RequestError:
    """The error that the server described; `Internal` for an answer that is no problem of ours (a proxy's, say)."""
    try:
        problem = answer.json()
        kind = REQUEST_ERRORS[problem["code"]]
        detail = str(problem["detail"])
    except (ValueError, KeyError, TypeError):
        return Internal(
            f"the server answered {answer.status_code}, which is no problem of the contract; look at its log"
        )
    # The classes build their details from parts; here the detail is whole already.
    error = kind.__new__(kind)
    allowed = problem.get("allowed") if isinstance(problem.get("allowed"), list) else None
    RequestError.__init__(
        error, detail, headers=dict(answer.headers), parameter=problem.get("parameter"), allowed=allowed
    )
    wait = _retry_after(answer)
    if wait is not None:
        error.__dict__["retry_after"] = wait
    return error
