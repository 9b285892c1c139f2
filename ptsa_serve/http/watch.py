"""Work that may outlive its use: it is cancelled when the client is gone or the deadline has passed."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect

from ptsa_serve.errors import DeadlineExceeded

__all__ = ["while_connected", "within"]

T = TypeVar("T")


async def while_connected(receive: Callable[[], Awaitable[Any]], work: Coroutine[Any, Any, T]) -> T:
    """Run `work` until it ends or `receive` says http.disconnect; the body must have been read before.

    Raises:
        ClientDisconnect: the client went first; `work` was cancelled. Else whatever `work` raises.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnect
    finally:
        unfinished: list[asyncio.Future[Any]] = [each for each in (task, gone) if not each.done()]
        for each in unfinished:
            each.cancel()
        # Waiting for them keeps their clean-up inside the request; what they raise now interests nobody.
        await asyncio.gather(*unfinished, return_exceptions=True)


@asynccontextmanager
async def within(deadline: float) -> AsyncIterator[None]:
    """Cancel the block at `deadline` (a time.monotonic() value).

    Raises:
        DeadlineExceeded: the deadline passed inside the block.
    """
    limit = asyncio.timeout(deadline - time.monotonic())
    try:
        async with limit:
            yield
    except TimeoutError:
        if not limit.expired():
            raise
        raise DeadlineExceeded(
            "the time for this request passed before its answer was there; allow more (X-Deadline-Ms, up to the "
            "limit that /v1/models shows) or try later"
        ) from None


async def _gone(receive: Callable[[], Awaitable[Any]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
