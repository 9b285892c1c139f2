"""What a photo may be, and how long the work on it may take."""

import io
import time
from dataclasses import dataclass

from ptsa_serve.errors import BadImage, BadParameter, DeadlineExceeded, TooLarge

__all__ = ["PIXELS_CEILING", "Clock", "ImageLimits", "Watched", "check_size", "damaged"]

# Above this Pillow warns and, at twice this, refuses by itself: its own limit, so that ours always decides.
PIXELS_CEILING = 89_478_485

# Reads that Pillow may do to find the first pixels. A photo with megabytes of XMP in a GIF needs 20,000 of them; files
# made of millions of empty blocks are the ones that need more.
_MAX_READS = 100_000


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What a photo may be: bytes of the file, pixels of the photo, pixels of each side."""

    max_bytes: int = 20 * 2**20
    max_pixels: int = 40_000_000
    min_side: int = 16
    max_side: int = 16_384

    def __post_init__(self) -> None:
        if not 0 < self.max_pixels <= PIXELS_CEILING:
            raise ValueError(f"max_pixels is {self.max_pixels}, allowed are 1 to {PIXELS_CEILING}")
        if not 0 < self.min_side <= self.max_side or self.max_bytes <= 0:
            raise ValueError(f"limits must be positive, and min_side at most max_side: {self}")


@dataclass(frozen=True, slots=True)
class Clock:
    """The time.monotonic() after which nobody waits for the photo; None: somebody always does."""

    deadline: float | None = None

    def check(self) -> None:
        """Raise DeadlineExceeded when the time is over."""
        if self.deadline is not None and time.monotonic() >= self.deadline:
            raise DeadlineExceeded(
                "the time for this request passed while the photo was decoded; allow more, or send a smaller photo "
                "or a baseline JPEG"
            )


class Watched(io.BytesIO):
    """A file for Pillow whose reads look at the clock: work that goes through it ends with the deadline.

    Raises DeadlineExceeded, and BadImage for a header that takes more reads than any photo needs.
    """

    def __init__(self, data: bytes, clock: Clock) -> None:
        super().__init__(data)
        self._clock = clock
        self._left: int | None = _MAX_READS

    def header_done(self) -> None:
        """Count no further: what is read from now on is pixels."""
        self._left = None

    def read(self, size: int | None = -1, /) -> bytes:
        self._clock.check()
        if self._left is not None:
            self._left -= 1
            if self._left < 0:
                raise BadImage("the file has too many small blocks before its pixels; save it anew as JPEG or PNG")
        return super().read(size)


def check_size(width: int, height: int, limits: ImageLimits) -> None:
    """Raise TooLarge for too many pixels, BadParameter for a side too short or too long."""
    found = f"the photo has {width} x {height} pixels"
    if width * height > limits.max_pixels:
        raise TooLarge(f"{found}, at most {limits.max_pixels} in all are allowed; send a smaller one")
    if min(width, height) < limits.min_side or max(width, height) > limits.max_side:
        allowed = f"each side may have {limits.min_side} to {limits.max_side}"
        raise BadParameter(f"{found}; {allowed}", parameter="image", allowed=[allowed])


def damaged(name: str) -> BadImage:
    """The error for a file of format `name` whose pixels are not all there."""
    return BadImage(f"the {name} file is truncated or damaged; send the file again, or save it anew as JPEG or PNG")
