"""One client's quota: a token bucket for each client, refilled evenly, kept for a bounded number of clients."""

import time
from collections import OrderedDict
from collections.abc import Callable

from ptsa_serve.errors import TooManyRequests

__all__ = ["Quota"]

# Clients remembered; the one unseen for longest is forgotten first, which can only be to its advantage.
_CLIENTS = 10_000


class Quota:
    """`per_minute` photos a minute and client, at most `per_minute` in one burst."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_minute = per_minute
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, client: str) -> None:
        """Count one photo of `client`.

        Raises:
            TooManyRequests: its bucket is empty; Retry-After says when the next photo is free.
        """
        now = self._clock()
        rate = self.per_minute / 60
        tokens, seen = self._buckets.pop(client, (float(self.per_minute), now))
        tokens = min(float(self.per_minute), tokens + (now - seen) * rate)
        enough = tokens >= 1
        self._buckets[client] = (tokens - 1 if enough else tokens, now)
        if len(self._buckets) > _CLIENTS:
            self._buckets.popitem(last=False)
        if not enough:
            raise TooManyRequests(
                f"this client has used its {self.per_minute} photos a minute; send the next one after Retry-After",
                retry_after=(1 - tokens) / rate,
            )
