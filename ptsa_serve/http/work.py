"""What the HTTP side asks of the runtime for one photo, and what it gets."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal

from ptsa_serve.prediction import PhotoInfo, Prediction
from ptsa_serve.predictor import Prepared

__all__ = ["Served", "Work"]


@dataclass(frozen=True, slots=True)
class Work:
    """One photo's errand: `read` gives its bytes (at most `size_hint`), `receive` says when the client leaves.

    deadline: time.monotonic() after which nobody waits. render: Prediction and Prepared to what is answered.
    """

    read: Callable[[], Awaitable[bytes]]
    receive: Callable[[], Awaitable[Any]]
    size_hint: int
    deadline: float
    tasks: tuple[str, ...]
    size: Literal["photo", "model"]
    render: Callable[[Prediction, Prepared], Any]
    keep_image: bool = False


@dataclass(frozen=True, slots=True)
class Served:
    """What `Work.render` gave, the photo's size, and the milliseconds of decode, queue, model and encode."""

    value: Any
    photo: PhotoInfo
    timings_ms: dict[str, float]
