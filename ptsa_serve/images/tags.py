"""Tags of a TIFF file, and of the little TIFF that EXIF is."""

import struct
from dataclasses import dataclass
from functools import cached_property

import numpy as np

__all__ = ["ORIENTATION", "Directory", "Tags", "orientation"]

ORIENTATION = 274

# TIFF 6.0 and BigTIFF: the number of a type to NumPy's letter and size. Rationals and floats are not needed.
_TYPES = {1: "u1", 2: "u1", 3: "u2", 4: "u4", 6: "i1", 7: "u1", 8: "i2", 9: "i4", 13: "u4", 16: "u8", 18: "u8"}
_MAX_ENTRIES = 4096


@dataclass(frozen=True)
class Tags:
    """The bytes of a TIFF, classic or big. Its readers raise ValueError or struct.error for what is not there."""

    data: bytes

    @cached_property
    def endian(self) -> str:
        """ "<" or ">"."""
        return {b"II": "<", b"MM": ">"}[self.data[:2]]

    @cached_property
    def big(self) -> bool:
        """Whether it is a BigTIFF, whose offsets have 8 bytes."""
        return self.number("H", 2) == 43

    def number(self, letter: str, at: int) -> int:
        """One whole number of struct's type `letter` at byte `at`."""
        if at > len(self.data):
            raise ValueError(f"byte {at} lies outside the file")
        return struct.unpack_from(self.endian + letter, self.data, at)[0]

    def first(self) -> int:
        """Where the first directory lies."""
        return self.number("Q", 8) if self.big else self.number("I", 4)

    def directory(self, at: int) -> "Directory":
        """The directory at byte `at`."""
        count = self.number("Q" if self.big else "H", at)
        if count > _MAX_ENTRIES:
            raise ValueError(f"{count} entries")
        head, step = (8, 20) if self.big else (2, 12)
        form, wide = (self.endian + "HHQ", 12) if self.big else (self.endian + "HHI", 8)
        entries = {}
        for entry in range(at + head, at + head + count * step, step):
            tag, kind, many = struct.unpack_from(form, self.data, entry)
            entries.setdefault(tag, (kind, many, entry + wide))
        end = at + head + count * step
        link = "Q" if self.big else "I"
        # Some writers leave the link to the next directory out at the end of the file.
        has_link = end + struct.calcsize(link) <= len(self.data)
        return Directory(self, entries, self.number(link, end) if has_link else 0)


@dataclass(frozen=True)
class Directory:
    """One image's tags. next: where the directory after it lies, 0 for none."""

    tags: Tags
    entries: dict[int, tuple[int, int, int]]
    next: int

    def __contains__(self, tag: int) -> bool:
        return tag in self.entries

    def values(self, tag: int) -> np.ndarray:
        """All values of `tag`, int64; none where the tag is missing. Raises ValueError for values of another kind."""
        if tag not in self.entries:
            return np.zeros(0, np.int64)
        kind, count, at = self.entries[tag]
        if kind not in _TYPES:
            raise ValueError(f"tag {tag} has the type {kind}")
        dtype = np.dtype(self.tags.endian + _TYPES[kind])
        if count * dtype.itemsize > (8 if self.tags.big else 4):
            at = self.tags.number("Q" if self.tags.big else "I", at)
        if at + count * dtype.itemsize > len(self.tags.data):
            raise ValueError(f"tag {tag} lies outside the file")
        return np.frombuffer(self.tags.data, dtype, count, at).astype(np.int64)

    def value(self, tag: int, default: int) -> int:
        """The first value of `tag`."""
        values = self.values(tag)
        return int(values[0]) if len(values) else default


def orientation(exif: bytes) -> int:
    """Orientation 1...8 of a block of EXIF, with or without its "Exif" mark; 1 where it says nothing or is damaged.

    EXIF alone decides, in every format: XMP may say so too, and is not asked.
    """
    tags = Tags(exif.removeprefix(b"Exif\0\0"))
    try:
        value = tags.directory(tags.first()).value(ORIENTATION, 1)
    except (ValueError, KeyError, struct.error):
        return 1
    return value if 1 <= value <= 8 else 1
