"""Deflate and CRC-32: ISA-L where its wheel is installed (4 to 10 times faster), the standard library
elsewhere.

Both write valid streams of the same content; their bytes differ, so answers are the same on machines of one
kind only.
"""

import zlib

try:
    from isal import isal_zlib
except ImportError:  # no wheel for this platform
    isal_zlib = None

__all__ = ["checksum", "deflate", "deflate_raw"]

# Level 1 of either: higher levels cost 3 to 100 times as much for a tenth of the size (filtered maps are half
# noise).
_LEVEL = 1


def checksum(data: bytes | memoryview, start: int = 0) -> int:
    """CRC-32 of `data`, continuing from `start`, as PNG and ZIP use it."""
    return isal_zlib.crc32(data, start) if isal_zlib else zlib.crc32(data, start)


def deflate(data: bytes | memoryview) -> bytes:
    """A zlib stream (RFC 1950) of `data`."""
    return isal_zlib.compress(data, _LEVEL) if isal_zlib else zlib.compress(data, _LEVEL)


def deflate_raw(data: bytes | memoryview) -> bytes:
    """A raw deflate stream (RFC 1951) of `data`, as ZIP holds it."""
    module = isal_zlib or zlib
    packer = module.compressobj(_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()
