"""The queue before the engine: bounded, no waiting for company, nothing run that nobody waits for.

A lone photo starts at once and has all cores. Those that find the engine busy run a core each, side by side in as many
lanes as the engine has: that finishes more photos a second than all cores on one photo after another. Each lane takes
the oldest and those of its size behind it, up to `max_batch`. A photo whose client has gone, or whose deadline can no
longer be met, is dropped before it costs the model anything. A batch that fails is run again one by one, so that a
fault stays with its own photo.
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
    # Whether the engine was idle when it came: only then may it take all cores.
    alone: bool
    arrived: float = field(default_factory=time.monotonic)
    # Set on the loop, read by the owner thread: the future itself may only be touched on the loop.
    dropped: bool = False


class Batcher:
    """Runs `run(items, alone) -> results`, items of one key at a time, on `lanes` threads of its own.

    `alone`: nothing else runs meanwhile. `limit`: items that may wait. `on_run(seconds, items)`, `on_drop(reason)` and
    `on_failure()` are told what happens. Deadlines are `time.monotonic()` values.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Any], bool], Sequence[Any]],
        *,
        limit: int,
        lanes: int = 1,
        max_batch: int = 1,
        on_run: Callable[[float, int], None] = lambda seconds, items: None,
        on_drop: Callable[[str], None] = lambda reason: None,
        on_failure: Callable[[], None] = lambda: None,
    ) -> None:
        self._run = run
        self._limit = limit
        self._lanes = lanes
        self._max_batch = max_batch
        self._on_run, self._on_drop, self._on_failure = on_run, on_drop, on_failure
        self._waiting: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._recent: deque[float] = deque(maxlen=_RECENT)
        self._last_run = -math.inf
        self._running: dict[int, float] = {}  # when the run in progress began, by thread
        self._exclusive = False  # it is the only one, with all cores
        self._failures = 0
        self._closed = False
        names = (f"ptsa-engine-{number}" for number in range(lanes))
        self._threads = [threading.Thread(target=self._own, name=name, daemon=True) for name in names]
        for thread in self._threads:
            thread.start()

    @property
    def depth(self) -> int:
        """Items that wait."""
        return len(self._waiting)

    @property
    def broken(self) -> bool:
        """Whether the engine failed several times in a row, or a thread of it ended."""
        return self._failures >= _BROKEN or not (self._closed or all(thread.is_alive() for thread in self._threads))

    def running_for(self) -> float:
        """Seconds since the longest run in progress began; 0 when the engine is idle."""
        since = min(list(self._running.values()), default=None)
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
        with self._changed:
            idle = not self._running and not self._waiting
            job = _Job(item, key, deadline, loop, loop.create_future(), idle)
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
        """Refuse new items, run those that wait, and end the threads (waits `timeout` seconds at most)."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        end = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))

    def _forget(self, job: _Job) -> None:
        with self._changed:
            job.dropped = True
            if job in self._waiting:
                self._waiting.remove(job)
                self._on_drop("abandoned")

    def _own(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: (self._waiting and not self._exclusive) or self._closed)
                if not self._waiting:
                    return
                if not (batch := self._take()):
                    continue
                alone = self._exclusive = batch[0].alone and not self._running
                self._running[threading.get_ident()] = time.monotonic()
            self._launch(batch, alone)
            with self._changed:
                del self._running[threading.get_ident()]
                self._exclusive = False if alone else self._exclusive
                self._changed.notify_all()

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

    def _launch(self, batch: list[_Job], alone: bool) -> None:
        try:
            self._run_timed(batch, alone)
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
                    self._launch([job], alone)

    def _run_timed(self, batch: list[_Job], alone: bool) -> None:
        started = self._running[threading.get_ident()] = time.monotonic()
        results = self._run([job.item for job in batch], alone)
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
        busy = self._lanes if self._exclusive else len(self._running)
        if busy < self._lanes and not self._waiting:
            return 0.0
        fastest = min(self._recent, default=0.0)
        rest_of_run = max(0.0, fastest - self.running_for()) if busy else 0.0
        return rest_of_run + len(self._waiting) // (self._max_batch * self._lanes) * fastest

    def _wait_estimate(self) -> float:
        mean = sum(self._recent) / len(self._recent) if self._recent else 0.0
        return mean * math.ceil((len(self._waiting) + 1) / (self._max_batch * self._lanes))

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
