"""A client of the HTTP contract that returns what the server computed: the same `Prediction`, the same errors."""

import io
import random
import re
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import httpx
import numpy as np

from ptsa_serve.errors import REQUEST_ERRORS, Internal, PTSAError, RequestError
from ptsa_serve.manifest import TaskRecord
from ptsa_serve.prediction import PhotoInfo, Prediction
from ptsa_serve.tasks import Task

__all__ = ["Client", "UnreachableError"]

# Longest wait that a Retry-After may ask for; beyond it the error is the caller's to handle (seconds).
_LONGEST_WAIT = 60.0


class UnreachableError(PTSAError):
    """No server answered: not running, another address, or the connection broke."""


class Client:
    """Sends photos to a server; usable as a context manager, from several threads.

    url: of the server, "http://localhost:3000". api_key: where the server wants one. timeout: seconds for one
    exchange. retries: how often a 503 (overloaded, starting, shutting down) is tried again, after Retry-After.
    """

    def __init__(self, url: str, *, api_key: str | None = None, timeout: float = 60.0, retries: int = 4) -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout)
        self._url = url
        self._retries = retries
        self._tasks: dict[str, Task] = {}

    def predict(
        self,
        photo: bytes | Path | str,
        *,
        tasks: Sequence[str] | None = None,
        size: Literal["photo", "model"] = "photo",
        deadline_ms: int | None = None,
    ) -> Prediction:
        """All maps of `photo` (its bytes, or the path of a file), or those that `tasks` names.

        Raises:
            RequestError: what the server answered, as the class of its code (BadImage, TooLarge, Overloaded, ...).
            UnreachableError: no answer came.
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
        return self._send("GET", "/v1/models").json()["models"]

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
                raise UnreachableError(
                    f"no answer from {self._url} ({type(error).__name__}); check the address and that the server runs"
                ) from error
            if answer.status_code < 400:
                return answer
            wait = _retry_after(answer)
            if answer.status_code != 503 or not left or wait is None or wait > _LONGEST_WAIT:
                raise _error(answer)
            left -= 1
            # The server spreads its clients already; this spreads those that were refused in the same second.
            time.sleep(wait * random.uniform(1.0, 1.1))

    def _prediction(self, answer: httpx.Response) -> Prediction:
        with np.load(io.BytesIO(answer.content), allow_pickle=False) as file:
            maps = {name: file[name] for name in file.files}
        if not maps.keys() <= self._tasks.keys():
            records = self.models()[0]["tasks"]
            self._tasks = {record["name"]: TaskRecord.model_validate(record).task() for record in records}
        width, height, orientation = (int(value) for value in re.findall(r"\d+", answer.headers["X-Photo"]))
        name, _, version = answer.headers["X-Model"].partition("@")
        steps = re.findall(r"(\w+);dur=([\d.]+)", answer.headers.get("Server-Timing", ""))
        return Prediction(
            maps=maps,
            tasks={task: self._tasks[task] for task in maps},
            photo=PhotoInfo(width, height, orientation),
            size=next(iter(maps.values())).shape[:2],
            model=(name, version),
            timings_ms={step: float(duration) for step, duration in steps},
        )


def _retry_after(answer: httpx.Response) -> float | None:
    value = answer.headers.get("Retry-After", "")
    return float(value) if value.isdecimal() else None


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
    allowed = problem.get("allowed")
    RequestError.__init__(
        error, detail, headers=dict(answer.headers), parameter=problem.get("parameter"), allowed=allowed
    )
    wait = _retry_after(answer)
    if wait is not None:
        error.__dict__["retry_after"] = wait
    return error
