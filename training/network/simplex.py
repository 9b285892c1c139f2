"""A point of the simplex whose corners are the tasks: how much each of them is preferred."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from training.errors import ConfigError

__all__ = ["Simplex"]


class Simplex:
    """The preference that a model has now, one for all its slots. `point`: a part for each task, 1 in all.

    preference: where the model rests, by task, 0 for those that it leaves out; ratios count; None: all alike. Raises
    ConfigError for unknown tasks, and for numbers that are no preference.
    """

    def __init__(self, tasks: Sequence[str], preference: Mapping[str, float] | None) -> None:
        wanted = dict.fromkeys(tasks, 1.0) if preference is None else preference
        if unknown := [task for task in wanted if task not in tasks]:
            raise ConfigError(f"preference names {', '.join(unknown)}; the tasks are {', '.join(tasks)}")
        numbers = list(wanted.values())
        if not all(isinstance(part, int | float) and math.isfinite(part) and part >= 0 for part in numbers):
            raise ConfigError(f"preference is {dict(wanted)}; allowed are numbers from 0 on, by task")
        if not sum(numbers):
            raise ConfigError(f"preference is {dict(wanted)}; it must prefer some task, e.g. {{{tasks[0]}: 1}}")
        self.tasks = tuple(tasks)
        self.point = tuple(wanted.get(task, 0) / sum(numbers) for task in tasks)

    @property
    def parts(self) -> list[tuple[int, float]]:
        """Number and part of each member that has one."""
        return [(member, part) for member, part in enumerate(self.point) if part]

    @contextmanager
    def at(self, point: Sequence[float]) -> Iterator[None]:
        """Be at another point for a while."""
        rest, self.point = self.point, tuple(point)
        try:
            yield
        finally:
            self.point = rest
