"""The queue before the engine: bounded, one owner thread, no waiting for company, nothing run that nobody waits for.

A lone photo starts at once. While the engine runs, photos gather; the next run takes the oldest and those of its size
behind it, up to `max_batch`. A photo whose client has gone, or whose deadline can no longer be met, is dropped before
it costs the model anything. A batch that fails is run again one by one, so that a fault stays with its own photo.
"""

import asyncio
import logging
import math
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ptsa_serve.errors import DeadlineExceeded, Internal, Overloaded, ShuttingDown

__all__ = ["Batcher", "Ran"]

log = logging.getLogger(__name__)

# Runs remembered for the two estimates: the mean tells clients when to come back, the minimum what is hopeless.
_RECENT = 16
# An estimate older than this is not trusted to refuse a photo: the engine may have become faster since (seconds).
_STALE = 5.0
# Failures in a row after which the engine counts as broken and the probes say so.
_BROKEN = 5


@dataclass(frozen=True, slots=True)
class Ran:
    """What came of one item: its result, milliseconds in the queue and in the engine, items in the same run."""

    result: Any
    queue_ms: float
    model_ms: float
    batch: int


@dataclass(slots=True, eq=False)
class _Job:
    item: Any
    key: Hashable
    deadline: float
    loop: asyncio.AbstractEventLoop
    future: "asyncio.Future[Ran]"
    arrived: float = field(default_factory=time.monotonic)
    # Set on the loop, read by the owner thread: the future itself may only be touched on the loop.
    dropped: bool = False


class Batcher:
    """Runs `run(items) -> results` on one thread of its own, items of one key at a time.

    `limit`: items that may wait. `on_run(seconds, items)`, `on_drop(reason)` and `on_failure()` are told what happens.
    Deadlines are `time.monotonic()` values.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Any]], Sequence[Any]],
        *,
        limit: int,
        max_batch: int = 1,
        on_run: Callable[[float, int], None] = lambda seconds, items: None,
        on_drop: Callable[[str], None] = lambda reason: None,
        on_failure: Callable[[], None] = lambda: None,
    ) -> None:
        self._run = run
        self._limit = limit
        self._max_batch = max_batch
        self._on_run, self._on_drop, self._on_failure = on_run, on_drop, on_failure
        self._waiting: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._recent: deque[float] = deque(maxlen=_RECENT)
        self._last_run = -math.inf
        self._running_since: float | None = None
        self._failures = 0
        self._closed = False
        self._thread = threading.Thread(target=self._own, name="ptsa-engine", daemon=True)
        self._thread.start()

    @property
    def depth(self) -> int:
        """Items that wait."""
        return len(self._waiting)

    @property
    def broken(self) -> bool:
        """Whether the engine failed several times in a row, or its thread ended."""
        return self._failures >= _BROKEN or not (self._thread.is_alive() or self._closed)

    def running_for(self) -> float:
        """Seconds since the run in progress began; 0 when the engine is idle."""
        since = self._running_since
        return 0.0 if since is None else time.monotonic() - since

    def retry_after(self) -> float:
        """Seconds after which a refused client may come back: the queue at the measured rate, and up to 25 % more."""
        return max(1.0, self._wait_estimate() * random.uniform(1.0, 1.25))

    async def submit(self, item: Any, *, key: Hashable, deadline: float) -> Ran:
        """Queue one item and wait for its result. Cancelling the wait takes it out of the queue.

        Raises:
            Overloaded: `limit` items wait already. ShuttingDown: the batcher is closed.
            DeadlineExceeded: the deadline passed, or cannot be met. Internal: the engine failed on this item.
        """
        loop = asyncio.get_running_loop()
        job = _Job(item, key, deadline, loop, loop.create_future())
        with self._changed:
            if self._closed:
                raise ShuttingDown("the server is shutting down; send the photo again after Retry-After")
            if len(self._waiting) >= self._limit:
                raise Overloaded(
                    f"{self._limit} photos wait already, as many as may; send it again after Retry-After",
                    retry_after=self.retry_after(),
                )
            if self._hopeless(job, self._waiting_ahead()):
                self._on_drop("deadline")
                raise DeadlineExceeded("the queue is too long for this deadline; allow more time or try later")
            self._waiting.append(job)
            self._changed.notify()
        try:
            return await job.future
        except asyncio.CancelledError:
            self._forget(job)
            raise

    def close(self, timeout: float = 30.0) -> None:
        """Refuse new items, run those that wait, and end the thread (waits `timeout` seconds at most)."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(timeout)

    def _forget(self, job: _Job) -> None:
        with self._changed:
            job.dropped = True
            if job in self._waiting:
                self._waiting.remove(job)
                self._on_drop("abandoned")

    def _own(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return
                batch = self._take()
            if batch:
                self._launch(batch)

    def _take(self) -> list[_Job]:
        """The oldest live job and those of its key behind it; the lock is held."""
        batch: list[_Job] = []
        kept: deque[_Job] = deque()
        for job in self._waiting:
            if self._hopeless(job, 0.0):
                self._on_drop("deadline")
                _deliver(job, error=DeadlineExceeded("the deadline passed in the queue; nothing was computed"))
            elif len(batch) < self._max_batch and (not batch or job.key == batch[0].key):
                batch.append(job)
            else:
                kept.append(job)
        self._waiting = kept
        return batch

    def _launch(self, batch: list[_Job]) -> None:
        try:
            self._run_timed(batch)
        except Exception:
            if len(batch) == 1:
                self._failures += 1
                self._on_failure()
                log.exception("the engine failed")
                _deliver(batch[0], error=Internal())
                return
            log.warning("a run of %d photos failed; running them one by one", len(batch), exc_info=True)
            for job in batch:
                if not job.dropped:
                    self._launch([job])

    def _run_timed(self, batch: list[_Job]) -> None:
        started = self._running_since = time.monotonic()
        try:
            results = self._run([job.item for job in batch])
        finally:
            self._running_since = None
        if len(results) != len(batch):
            raise RuntimeError(f"{len(results)} results for {len(batch)} items")
        ended = time.monotonic()
        self._failures = 0
        self._last_run = ended
        self._recent.append(ended - started)
        self._on_run(ended - started, len(batch))
        for job, result in zip(batch, results, strict=True):
            queued, ran = (started - job.arrived) * 1000, (ended - started) * 1000
            _deliver(job, Ran(result, queued, ran, len(batch)))

    def _waiting_ahead(self) -> float:
        """Seconds, at the least, before a job that joins now can start; 0 for an idle engine."""
        if self._running_since is None and not self._waiting:
            return 0.0
        fastest = min(self._recent, default=0.0)
        rest_of_run = max(0.0, fastest - self.running_for()) if self._running_since else 0.0
        return rest_of_run + len(self._waiting) // self._max_batch * fastest

    def _wait_estimate(self) -> float:
        mean = sum(self._recent) / len(self._recent) if self._recent else 0.0
        return mean * math.ceil((len(self._waiting) + 1) / self._max_batch)

    def _hopeless(self, job: _Job, ahead: float) -> bool:
        now = time.monotonic()
        fresh = now - self._last_run < _STALE
        fastest = min(self._recent, default=0.0) if fresh else 0.0
        return now + (ahead if fresh else 0.0) + fastest > job.deadline


def _deliver(job: _Job, ran: Ran | None = None, *, error: Exception | None = None) -> None:
    """Hand the outcome to the loop that waits for it; a loop or a waiter that is gone is no fault."""

    def settle() -> None:
        if job.future.done():
            return
        if error is not None:
            job.future.set_exception(error)
        elif ran is not None:
            job.future.set_result(ran)

    try:
        job.loop.call_soon_threadsafe(settle)
    except RuntimeError:
        log.debug("the event loop closed before the result came")
