"""Sessions and compiled graphs: made when they are first asked for, and dropped when too many others were since."""

import logging
import threading
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

from ptsa_serve.heap import give_back

__all__ = ["Kept"]

log = logging.getLogger(__name__)

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Kept(Generic[K, V]):
    """The `most` values last asked for, by key. All methods may be called from several threads."""

    def __init__(self, make: Callable[[K], V], most: int) -> None:
        self._make, self._most = make, most
        self._values: dict[K, V] = {}  # the last used is the last
        self._coming: set[K] = set()  # one that failed stays: it is not tried again and again
        self._background = ThreadPoolExecutor(1, thread_name_prefix="ptsa-make")
        self._lock, self._making = threading.Lock(), threading.Lock()

    def get(self, key: K, meanwhile: K | None = None) -> V:
        """The value of `key`; raises what `make` does. One is made at a time, and the others can be had meanwhile.

        meanwhile: another key, whose value is as good but slower. If that one is there and the first is not, nobody
        waits: it is the answer until the first is made, in the background.
        """
        if (found := self._use(key)) is not None:
            return found
        if meanwhile is None or (found := self._use(meanwhile)) is None:
            return self._made(key)
        with self._lock:
            if key not in self._coming and key not in self._values:
                self._coming.add(key)
                self._background.submit(self._make_unseen, key)
        return found

    def close(self) -> None:
        """Drop all, and wait for what is being made. No method may be called afterwards."""
        self._background.shutdown(cancel_futures=True)
        self._drop(0)

    def _made(self, key: K) -> V:
        with self._making:
            if (made := self._use(key)) is None:  # no other thread made it meanwhile
                self._drop(self._most - 1)  # before: both would be more than may be
                made = self._make(key)
                give_back()
            with self._lock:
                self._values[key] = made
                self._coming.discard(key)
        return made

    def _make_unseen(self, key: K) -> None:
        try:
            self._made(key)
        except Exception:
            log.exception("what photos side by side run on could not be made; they run on what photos alone do")

    def _use(self, key: K) -> V | None:
        with self._lock:
            if (found := self._values.pop(key, None)) is not None:
                self._values[key] = found
            return found

    def _drop(self, most: int) -> None:
        """Keep `most` of them. A value ends when nobody uses it any more."""
        with self._lock:
            old = list(self._values)[: max(0, len(self._values) - most)]
            dropped = [self._values.pop(key) for key in old]
        del dropped  # outside of the lock: it takes its time
