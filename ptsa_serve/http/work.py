"""What the HTTP side asks of the runtime for one photo, and what it gets."""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

from ptsa_serve.http.tensors import Infer
from ptsa_serve.prediction import PhotoInfo, Prediction
from ptsa_serve.predictor import Prepared

__all__ = ["Answer", "Served", "TensorWork", "Work"]

# A body in pieces, none copied: all there, or made as they are sent (an iterator).
Answer = Sequence[bytes | memoryview] | Iterator[bytes]


@dataclass(frozen=True, slots=True)
class Work:
    """One photo's errand: `read` gives its bytes (at most `size_hint`), `receive` says when the client leaves.

    deadline: time.monotonic() after which nobody waits. held: closed by the rim when the answer is sent or dropped;
    what the request holds until then goes there. render: Prediction and Prepared to what is answered.
    """

    read: Callable[[], Awaitable[bytes]]
    receive: Callable[[], Awaitable[Any]]
    size_hint: int
    deadline: float
    held: ExitStack
    tasks: tuple[str, ...]
    size: Literal["photo", "model"]
    render: Callable[[Prediction, Prepared], Answer]
    keep_image: bool = False


@dataclass(frozen=True, slots=True)
class TensorWork:
    """As `Work`, for a batch of images: `parse` reads it, `bytes_per_pixel` says what its images and maps take."""

    read: Callable[[], Awaitable[bytes]]
    receive: Callable[[], Awaitable[Any]]
    size_hint: int
    deadline: float
    held: ExitStack
    parse: Callable[[bytes], Infer]
    bytes_per_pixel: Callable[[Infer], int]


@dataclass(frozen=True, slots=True)
class Served:
    """What `Work.render` gave, the photo's size, and the milliseconds of decode, queue, model and encode."""

    value: Answer
    photo: PhotoInfo
    timings_ms: dict[str, float]
