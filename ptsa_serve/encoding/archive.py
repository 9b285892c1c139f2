"""ZIP archives of maps, in memory: members stored as they are, checksums by ISA-L, no time stamps.

The standard library's writer spends most of its time on CRC-32 and copies; for 6 MB of maps this takes a
fifth of it.
"""

import struct
from collections.abc import Mapping

import numpy as np

from ptsa_serve.encoding.deflate import checksum, deflate_raw

__all__ = ["Piece", "npy", "pack"]

Piece = bytes | memoryview

_STORED, _DEFLATED = 0, 8
# 1980-01-01, the earliest date of the format: equal maps make equal archives.
_DATE = 0x21
_LIMIT = 0xFFFF_FFFF


def pack(members: Mapping[str, bytes | list[Piece]], *, compress: bool = False) -> list[Piece]:
    """A ZIP archive (APPNOTE 6.3.3, without ZIP64) of `members`, in their order; `compress` deflates them.

    It comes in pieces, to be written one after another; what was not compressed is not copied.

    Raises ValueError beyond 4 GiB.
    """
    parts: list[Piece] = []
    directory: list[bytes] = []
    offset = 0
    for name, content in members.items():
        pieces = [content] if isinstance(content, bytes) else content
        crc = 0
        for piece in pieces:
            crc = checksum(piece, crc)
        length = sum(len(piece) for piece in pieces)
        if compress:
            pieces = [deflate_raw(b"".join(pieces))]
        packed = sum(len(piece) for piece in pieces)
        path = name.encode()
        method = _DEFLATED if compress else _STORED
        fields = struct.pack("<HHHHHIIIHH", 20, 0x800, method, 0, _DATE, crc, packed, length, len(path), 0)
        directory.append(
            b"PK\1\2" + struct.pack("<H", 20) + fields + struct.pack("<HHHII", 0, 0, 0, 0o644 << 16, offset) + path
        )
        parts += [b"PK\3\4" + fields + path, *pieces]
        offset += 30 + len(path) + packed
        if offset > _LIMIT:
            raise ValueError("the maps take more than 4 GiB, which one archive cannot hold; ask for fewer tasks")
    index = b"".join(directory)
    count = len(directory)
    end = b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, count, count, len(index), offset, 0)
    return [*parts, index, end]


def npy(values: np.ndarray) -> list[Piece]:
    """`values` as a .npy file (format 1.0) in two pieces, header and data; the data is not copied."""
    values = np.ascontiguousarray(values)
    text = f"{{'descr': {values.dtype.str!r}, 'fortran_order': False, 'shape': {values.shape!r}, }}"
    # Magic, version and length take 10 bytes; the whole header is a multiple of 64, ended by a line break.
    padded = text + " " * (-(len(text) + 11) % 64) + "\n"
    header = b"\x93NUMPY\1\0" + struct.pack("<H", len(padded)) + padded.encode("latin1")
    return [header, values.data.cast("B") if values.size else b""]
