"""A budget of bytes for photos and maps in the making: big photos wait for one another, small ones slip past none."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

__all__ = ["MemoryBudget"]


class MemoryBudget:
    """Bytes that may be reserved at once, first come first served; used from one event loop.

    First come first served, although a small photo could pass a big one: otherwise a stream of small photos would
    keep a big one waiting for ever.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.free = total
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def reserve(self, wanted: int) -> AsyncIterator[None]:
        """Hold `wanted` bytes inside the block, waiting until they are free. More than the total means all of it."""
        amount = min(wanted, self.total)
        await self._acquire(amount)
        try:
            yield
        finally:
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
