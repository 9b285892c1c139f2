"""Budgets of bytes for bodies, photos, maps and answers: big ones wait for one another, small ones slip past none."""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from typing import Any

__all__ = ["Lease", "Memory", "MemoryBudget"]

# Shares of a server's budget. Bodies have one of their own: who holds bytes there may wait for the others, and nobody
# waits the other way, so that no two requests wait for each other. Small photos have one too: a few clients with large
# answers that they do not read must not stop everybody else.
_BODIES, _SMALL = 1 / 8, 1 / 4
# A photo is small when at least so many of its size fit into the small ones' share.
_SMALL_ONES = 8


class Lease:
    """Bytes of a budget that belong to one request until they are released; used on the event loop alone."""

    def __init__(self, amount: int, give_back: Callable[[int], None]) -> None:
        self._amount = amount
        self._give_back = give_back
        self._users: list[Future[Any]] = []

    def shrink(self, amount: int) -> None:
        """Keep `amount` bytes at most and give the others back."""
        spare = max(self._amount - amount, 0)
        self._amount -= spare
        self._give_back(spare)

    def outlive(self, work: Future[Any]) -> None:
        """Hold what is held until `work` has ended, even if it is released before: no thread can be stopped."""
        self._users.append(work)

    def release(self) -> None:
        """Give everything back, once those that `outlive` named have ended. Calling it twice changes nothing."""
        running = [work for work in self._users if not work.done()]
        if not running:
            self.shrink(0)
            return
        loop = asyncio.get_running_loop()

        def again(_: Future[Any]) -> None:
            with contextlib.suppress(RuntimeError):  # the server has ended meanwhile, and its loop
                loop.call_soon_threadsafe(self.release)

        running[0].add_done_callback(again)


class MemoryBudget:
    """Bytes that may be reserved at once, first come first served; used from one event loop.

    First come first served, although a small photo could pass a big one: otherwise a stream of small photos would
    keep a big one waiting for ever.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.free = total
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @contextlib.asynccontextmanager
    async def reserve(self, wanted: int) -> AsyncIterator[Lease]:
        """Hold `wanted` bytes inside the block, waiting until they are free. More than the total means all of it."""
        lease = await self.lease(wanted)
        try:
            yield lease
        finally:
            lease.release()

    async def lease(self, wanted: int) -> Lease:
        """As `reserve`, to be released by the caller."""
        amount = min(wanted, self.total)
        await self._acquire(amount)
        return Lease(amount, self._give_back)

    def _give_back(self, amount: int) -> None:
        self.free += amount
        self._wake()

    async def _acquire(self, amount: int) -> None:
        if not self._waiting and amount <= self.free:
            self.free -= amount
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((amount, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.free += amount  # granted in the same moment in which the request was dropped
            self._waiting = deque(entry for entry in self._waiting if entry[1] is not turn)
            self._wake()
            raise

    def _wake(self) -> None:
        while self._waiting and (self._waiting[0][1].done() or self._waiting[0][0] <= self.free):
            amount, turn = self._waiting.popleft()
            if not turn.done():
                self.free -= amount
                turn.set_result(None)


class Memory:
    """One server's budget of `total` bytes, in its three shares: bodies, small photos, large photos."""

    def __init__(self, total: int) -> None:
        self.bodies = MemoryBudget(int(total * _BODIES))
        self._small = MemoryBudget(int(total * _SMALL))
        self._large = MemoryBudget(total - self.bodies.total - self._small.total)

    @property
    def held(self) -> int:
        """Bytes that requests hold."""
        return sum(share.total - share.free for share in (self.bodies, self._small, self._large))

    def photos(self, wanted: int) -> MemoryBudget:
        """The share of a photo that needs `wanted` bytes from its decoding until its answer is sent."""
        return self._small if wanted <= self._small.total // _SMALL_ONES else self._large
