"""Sessions and compiled graphs: made when they are first asked for, and dropped when too many others were since."""

import threading
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from ptsa_serve.heap import give_back

__all__ = ["Kept"]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Kept(Generic[K, V]):
    """The `most` values last asked for, by key. All methods may be called from several threads."""

    def __init__(self, make: Callable[[K], V], most: int) -> None:
        self._make, self._most = make, most
        self._values: dict[K, V] = {}  # the last used is the last
        self._lock, self._making = threading.Lock(), threading.Lock()

    def get(self, key: K) -> V:
        """The value of `key`; raises what `make` does. One is made at a time, and the others can be had meanwhile."""
        if (found := self._use(key)) is not None:
            return found
        with self._making:
            if (found := self._use(key)) is not None:
                return found
            self._drop(self._most - 1)  # before: both would be more than may be
            made = self._make(key)
            give_back()
            with self._lock:
                self._values[key] = made
        return made

    def all(self) -> list[V]:
        """Those that are kept; the last used is the last."""
        with self._lock:
            return list(self._values.values())

    def clear(self) -> None:
        """Drop all."""
        self._drop(0)

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
