"""One line that says how far a run is: a live bar on a terminal, a line a minute in a log file."""

import sys
import time
from typing import Self

from tqdm import tqdm

__all__ = ["Progress"]

_SMOOTHING = 0.05


class Progress:
    """Shows step, or whatever `unit` is counted, pace, remaining time and smoothed losses.

    On a stream that is no terminal: one line a minute.
    """

    def __init__(self, name: str, total: int, *, start: int = 0, unit: str = "step") -> None:
        live = sys.stderr.isatty()
        self._bar = tqdm(
            total=total,
            initial=start,
            desc=name,
            unit=unit,
            dynamic_ncols=live,
            mininterval=0.5 if live else 60.0,
            maxinterval=1.0 if live else 60.0,
            ascii=not live,
        )
        self._means: dict[str, float] = {}
        self._shown = 0.0

    def update(self, step: int, **values: float) -> None:
        """Note that `step` steps are done, with the values of the last one."""
        for name, value in values.items():
            old = self._means.get(name, value)
            self._means[name] = old + _SMOOTHING * (value - old)
        if time.monotonic() - self._shown > self._bar.mininterval:
            self._bar.set_postfix({k: f"{v:.3g}" for k, v in self._means.items()}, refresh=False)
            self._shown = time.monotonic()
            self._bar.update(step - self._bar.n)
            if not sys.stderr.isatty():
                self._bar.refresh()
                sys.stderr.write("\n")

    def say(self, line: str) -> None:
        """A line above the bar, for good."""
        self._bar.write(line, file=sys.stderr)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Show the end; after an error, leave the line where it is so that a message begins on its own."""
        if kind is None:
            self._bar.update(self._bar.total - self._bar.n)
        self._bar.close()
