"""What the C library keeps of freed memory."""

import ctypes

import psutil
import pytest

from ptsa_serve.heap import give_back

_PIECE, _PIECES = 64 * 1024, 3200  # 210 MB, in pieces that glibc takes from its heap


def test_freed_memory_is_given_back_although_later_pieces_are_in_use():
    library = ctypes.CDLL(None)
    if not hasattr(library, "malloc_trim"):
        pytest.skip("this C library cannot be told to")
    library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    library.free.restype, library.free.argtypes = None, [ctypes.c_void_p]
    pieces = [library.malloc(_PIECE) for _ in range(_PIECES)]
    for piece in pieces:
        ctypes.memset(piece, 1, _PIECE)
    last = library.malloc(_PIECE)
    for piece in pieces:
        library.free(piece)
    resident = psutil.Process().memory_info().rss
    give_back()
    assert resident - psutil.Process().memory_info().rss > 0.8 * _PIECE * _PIECES
    library.free(last)
