"""Some of many, evenly spread."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

__all__ = ["evenly"]

T = TypeVar("T")


def evenly(items: Sequence[T], count: int) -> list[T]:
    """At most `count` of `items`, from the first to the last, in their order."""
    indices = np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)
    return [items[index] for index in indices.tolist()]
