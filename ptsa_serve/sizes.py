"""The image sizes that a model takes: a few fixed ones, a rule, or both; and which of them suits a photo."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["AnySize", "Size", "Sizes"]

Size = tuple[int, int]

# A photo squashed by more than this is run at a size of its own, where the model takes one: graphs of a fixed size are
# faster, and between 4:3 and 16:9 nothing is squashed by more than 1.16.
_SQUASHED = 1.2


@dataclass(frozen=True, slots=True)
class AnySize:
    """Sides that are multiples of `multiple`, of up to `pixels` in all."""

    multiple: int
    pixels: int

    def __contains__(self, size: object) -> bool:
        if not (isinstance(size, tuple) and len(size) == 2):
            return False
        height, width = size
        whole = height % self.multiple == 0 and width % self.multiple == 0
        return whole and 0 < height * width <= self.pixels

    def choose(self, height: int, width: int) -> Size:
        """The (H, W) of about the photo's aspect ratio with as many pixels as may be."""
        shrink = math.sqrt(self.pixels / (height * width)) / self.multiple
        most = self.pixels // self.multiple**2
        rows = min(max(1, round(height * shrink)), most)
        columns = min(max(1, round(width * shrink)), most // rows)
        return rows * self.multiple, columns * self.multiple


@dataclass(frozen=True, slots=True)
class Sizes:
    """fixed: (H, W) each. rule: what else is taken, None for nothing. Iterates over the fixed ones."""

    fixed: tuple[Size, ...]
    rule: AnySize | None = None

    def __contains__(self, size: object) -> bool:
        return size in self.fixed or (self.rule is not None and size in self.rule)

    def __iter__(self) -> Iterator[Size]:
        return iter(self.fixed)

    def __str__(self) -> str:
        """For messages: "384x512, 512x384 or multiples of 32 up to 200,704 pixels" (height x width)."""
        parts = [f"{height}x{width}" for height, width in self.fixed]
        if self.rule:
            parts.append(f"multiples of {self.rule.multiple} up to {self.rule.pixels:,} pixels")
        return " or ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))

    @property
    def most_pixels(self) -> int:
        """Pixels of the largest."""
        return max([*(height * width for height, width in self.fixed), self.rule.pixels if self.rule else 0])

    def choose(self, height: int, width: int) -> Size:
        """The fixed (H, W) whose aspect ratio is nearest to height / width, the first of equals; one by the rule where
        that would squash the photo too much.
        """
        nearest = min(self.fixed, key=lambda size: _squash(height, width, size), default=None)
        if self.rule and (nearest is None or _squash(height, width, nearest) > math.log(_SQUASHED)):
            return self.rule.choose(height, width)
        assert nearest is not None
        return nearest


def _squash(height: int, width: int, size: Size) -> float:
    """|log| of the factor by which one side shrinks more than the other."""
    return abs(math.log(height * size[1] / (width * size[0])))
