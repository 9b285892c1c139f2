"""The segments of a JPEG: what it is and what it costs, before a pixel is decoded, and a clean copy for the decoder.

libjpeg tells the first of its warnings alone. The clean copy holds what pixels need and nothing that libjpeg could
find odd, so that any warning of it is about pixels: no metadata, no bytes between segments, header fields that say
what libjpeg assumes anyway. Numbers of markers: ITU-T T.81, table B.1.
"""

import re
import struct
from dataclasses import dataclass, field, replace

import numpy as np

from ptsa_serve.errors import BadImage
from ptsa_serve.images.limits import damaged
from ptsa_serve.images.sniff import unsupported

__all__ = ["MAX_WORK", "Frame", "Parts", "Scan", "split"]

_SOI, _EOI = b"\xff\xd8", b"\xff\xd9"
_JFIF = b"\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0"
_BASELINE, _EXTENDED, _PROGRESSIVE, _ARITHMETIC, _ARITHMETIC_PROGRESSIVE = 0xC0, 0xC1, 0xC2, 0xC9, 0xCA
_FRAMES = {_BASELINE, _EXTENDED, _PROGRESSIVE, _ARITHMETIC, _ARITHMETIC_PROGRESSIVE}
_NOT_READ = {
    **dict.fromkeys((0xC3, 0xCB), "lossless JPEG"),
    **dict.fromkeys((0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF, 0xDE, 0xDF), "hierarchical JPEG"),
    0xF7: "JPEG-LS",
}
_DHT, _DAC, _SOS, _DQT, _DNL, _DRI = 0xC4, 0xCC, 0xDA, 0xDB, 0xDC, 0xDD
_APP0, _APP1, _APP14 = 0xE0, 0xE1, 0xEE
# A marker that is no part of a scan's data: ff 00 is a byte of data, ff d0 to ff d7 are restarts, and any number of ff
# may stand in front.
_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")
_FILL = b"\xff"
_ENDS_DATA = np.array([bool(_MARKER.match(bytes([0xFF, code]))) for code in range(256)])
_PIECE = 1 << 18
_ANOTHER_FRAME = re.compile(rb"\xff[\xc0-\xc2]\0[\x0b\x11\x14]\x08")

# Most files have fewer than 20 segments; 20 MiB of metadata have 320. Above this it is work without pixels.
_MAX_SEGMENTS = 5_000
# libjpeg visits every block of a component for every scan, even of an empty one: about 1.1 ns for each of its pixels
# (2 cores of an AMD EPYC). This bounds a file to about 3 s; files of encoders have 6 to 20 scans, and 40 megapixels in
# 4:2:0 may have 60.
MAX_WORK = 1_500_000_000


@dataclass(frozen=True, slots=True)
class Frame:
    """The frame header. sampling: (horizontal, vertical) factors by component identifier."""

    kind: int
    precision: int
    height: int
    width: int
    sampling: dict[int, tuple[int, int]]
    body: bytes

    def packed(self) -> bytes:
        """The segment with its height, which a DNL segment may have told later."""
        return _segment(self.kind, self.body[:1] + struct.pack(">H", self.height) + self.body[3:])

    def pixels(self, component: int) -> int:
        """Pixels of one component."""
        across, down = (max(factors) for factors in zip(*self.sampling.values(), strict=True))
        h, v = self.sampling[component]
        return self.width * self.height * h * v // (across * down)


@dataclass(frozen=True, slots=True)
class Scan:
    """One scan: tables and header before its data (without the frame), its data, its components.

    first, last: coefficients of a block that it brings. low: the lowest bit of them that it leaves out.
    """

    head: bytes
    data: bytes
    components: tuple[int, ...]
    first: int
    last: int
    low: int


@dataclass(frozen=True, slots=True)
class Parts:
    """What the pixels of a JPEG need. exif: the first such block. adobe: transform code, None without the segment."""

    frame: Frame
    scans: tuple[Scan, ...]
    exif: bytes = b""
    jfif: bool = False
    adobe: int | None = None

    def clean(self) -> bytes:
        """The same pixels as a file in which nothing is odd."""
        first = _SOI + (_JFIF if self.jfif else b"")
        if self.adobe is not None:
            first += _segment(_APP14, b"Adobe\0\x64\0\0\0\0" + bytes([self.adobe]))
        scans = [part for scan in self.scans for part in (scan.head, scan.data)]
        return b"".join([first, self.frame.packed(), *scans, _EOI])

    def marker_after(self, index: int) -> int:
        """The number of the marker that follows scan `index` in the clean file."""
        return self.scans[index + 1].head[1] if index + 1 < len(self.scans) else _EOI[1]

    def shortened(self, index: int, count: int) -> "Parts":
        """Without the last `count` bytes of the data of scan `index`."""
        scan = replace(self.scans[index], data=self.scans[index].data[:-count])
        return replace(self, scans=(*self.scans[:index], scan, *self.scans[index + 1 :]))

    def whole(self) -> bool:
        """Whether the scans bring every coefficient of every component, to its last bit."""
        missing = {(component, coefficient) for component in self.frame.sampling for coefficient in range(64)}
        for scan in self.scans:
            if not scan.low:
                span = range(scan.first, scan.last + 1)
                missing.difference_update((component, each) for component in scan.components for each in span)
        return not missing

    def work(self) -> int:
        """Pixels that the decoder visits: those of each component, once for each of its scans."""
        return sum(self.frame.pixels(component) for scan in self.scans for component in scan.components)


@dataclass(slots=True)
class _Found:
    """What the walk has met so far."""

    frame: Frame | None = None
    scans: list[Scan] = field(default_factory=list)
    pending: list[bytes] = field(default_factory=list)
    exif: bytes = b""
    jfif: bool = False
    adobe: int | None = None
    stray: bool = False


def split(data: bytes, tables: bytes = b"") -> Parts:
    """The parts of `data`; `tables`, of a TIFF, stand in front of its own.

    Raises BadImage, and UnsupportedMediaType for kinds of JPEG that are not read.
    """
    found = _Found()
    if tables:
        _walk(tables, found)
    end = _walk(data, found)
    frame = found.frame
    if frame is None or not found.scans or not frame.height or not frame.width:
        raise damaged("JPEG")
    if found.stray and _ANOTHER_FRAME.search(data, end):
        # The walk may have lost its way and taken the thumbnail for the photo.
        raise damaged("JPEG")
    parts = Parts(frame, tuple(found.scans), found.exif, found.jfif, _adobe(found.adobe, frame))
    if parts.work() > MAX_WORK:
        raise BadImage(
            f"the JPEG has {len(parts.scans)} scans of {frame.width} x {frame.height} pixels, files of encoders have "
            "up to 20; save it anew as a baseline JPEG or as PNG"
        )
    if not parts.whole():
        raise damaged("JPEG")
    return parts


def _walk(data: bytes, found: _Found) -> int:
    """Read segments up to the end of the image; the place after it."""
    at = 2
    for _ in range(_MAX_SEGMENTS):
        marker = _MARKER.search(data, at)
        if marker is None:
            return len(data)
        code = marker[1][0]
        found.stray |= bool(data[at : marker.start()].strip(_FILL))
        at = marker.end()
        if code == 0xD9:
            return at
        if code == 0xD8:
            raise damaged("JPEG")
        if code < 0xC0 or (0xF0 <= code != 0xF7 and code != 0xFE):
            # No segment has such a number: bytes to spare.
            found.stray = True
            continue
        length = int.from_bytes(data[at : at + 2], "big")
        if length < 2 or at + length > len(data):
            return len(data)
        body, at = data[at + 2 : at + length], at + length
        if code == _SOS:
            at = _scan(body, data, at, found)
        else:
            _segment_of(code, body, found)
    raise BadImage(f"the JPEG has more than {_MAX_SEGMENTS} segments; save it anew as JPEG or PNG")


def _segment_of(code: int, body: bytes, found: _Found) -> None:
    if code in _NOT_READ:
        raise unsupported(f"found a {_NOT_READ[code]} file")
    if code in _FRAMES:
        if found.frame is not None:
            raise damaged("JPEG")
        found.frame = _frame(code, body)
    elif code in (_DHT, _DAC, _DQT, _DRI):
        found.pending.append(_segment(code, body))
    elif code == _DNL and found.frame is not None and not found.frame.height and len(body) == 2:
        found.frame = replace(found.frame, height=int.from_bytes(body, "big"))
    elif code == _APP0 and body.startswith(b"JFIF\0"):
        found.jfif = True
    elif code == _APP14 and body.startswith(b"Adobe") and len(body) >= 12:
        found.adobe = body[11]
    elif code == _APP1 and body.startswith(b"Exif\0\0") and not found.exif:
        found.exif = body


def _frame(kind: int, body: bytes) -> Frame:
    if len(body) < 6 or len(body) != 6 + 3 * body[5]:
        raise damaged("JPEG")
    precision, height, width, count = struct.unpack_from(">BHHB", body)
    if precision != 8:
        raise unsupported(f"found a JPEG of {precision} bits")
    if count not in (1, 3, 4):
        raise unsupported(f"found a JPEG of {count} components")
    sampling = {body[at]: (body[at + 1] >> 4, body[at + 1] & 15) for at in range(6, len(body), 3)}
    if len(sampling) != count or not all(1 <= f <= 4 for factors in sampling.values() for f in factors):
        raise damaged("JPEG")
    return Frame(kind, precision, height, width, sampling, body)


def _scan(body: bytes, data: bytes, at: int, found: _Found) -> int:
    """Take the scan whose header is `body` and whose data starts at `at`; the place of the marker after it."""
    frame = found.frame
    count = body[0] if body else 0
    if frame is None or len(body) != 4 + 2 * count:
        raise damaged("JPEG")
    components = tuple(body[1 : 1 + 2 * count : 2])
    if not set(components) <= set(frame.sampling):
        raise damaged("JPEG")
    if frame.kind not in (_PROGRESSIVE, _ARITHMETIC_PROGRESSIVE):
        # What libjpeg assumes, with a warning, where a sequential file says otherwise.
        body = body[:-3] + b"\0\x3f\0"
    end = _end_of_data(data, at)
    head = b"".join([*found.pending, _segment(_SOS, body)])
    first, last, approximation = body[-3:]
    found.scans.append(Scan(head, data[at:end].rstrip(_FILL), components, first, last, approximation & 15))
    found.pending = []
    return end


def _end_of_data(data: bytes, at: int) -> int:
    """Where the data of a scan that starts at `at` ends: at a marker that is none of it. Twice as fast as `_MARKER`."""
    values = np.frombuffer(data, np.uint8)
    for start in range(at, len(data) - 1, _PIECE):
        places = np.flatnonzero(values[start : min(start + _PIECE, len(data) - 1)] == 0xFF) + start
        places = places[_ENDS_DATA[values[places + 1]]]
        if len(places):
            return int(places[0])
    return len(data)


def _adobe(transform: int | None, frame: Frame) -> int | None:
    """The transform code, or the one that libjpeg assumes for an unknown code."""
    known = {3: (0, 1), 4: (0, 2)}.get(len(frame.sampling), (0, 1, 2))
    return transform if transform is None or transform in known else known[-1]


def _segment(code: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, code, len(body) + 2) + body
