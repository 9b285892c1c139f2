"""What the C library keeps of memory that was freed, given back to the system.

A graph is made through hundreds of megabytes of pieces that are freed at once, and glibc keeps them for later: with ten
sessions of ONNX Runtime 100 MB, with ten graphs of OpenVINO 200 MB.
"""

import ctypes
from collections.abc import Callable
from functools import cache

__all__ = ["give_back"]


def give_back() -> None:
    """Give freed memory back to the system, where the C library can be told to (glibc); takes milliseconds."""
    if trim := _malloc_trim():
        trim(0)


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, TypeError, AttributeError):  # TypeError: Windows has no library of all names
        return None
