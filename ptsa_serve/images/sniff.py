"""The first bytes decide what a file is."""

import struct

from PIL import features

from ptsa_serve.errors import BadImage, UnsupportedMediaType

__all__ = ["FORMATS", "SUFFIXES", "camera_raw", "sniff", "unsupported"]

# Formats that are read, by Pillow's name. Pillow knows dozens more; a server must not open them.
FORMATS: tuple[str, ...] = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
if features.check("avif"):
    FORMATS = (*FORMATS, "AVIF")

_RAW = "camera raw"

# All usual endings of the formats that are read.
SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".pjpeg", ".pjp", ".png", ".apng", ".webp", ".bmp", ".dib", ".tif"}
    | {".tiff", ".gif", ".avif", ".avifs"}
)

_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xd8", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    # Known, and not read: the answer names them.
    (b"IIRO", _RAW),  # Olympus ORF
    (b"IIRS", _RAW),
    (b"MMOR", _RAW),
    (b"IIU\0", _RAW),  # Panasonic RW2
    (b"FUJIFILMCCD-RAW", _RAW),
    (b"FOVb", _RAW),  # Sigma X3F
    (b"\0MRM", _RAW),  # Minolta MRW
    (b"II\x1a\0\0\0HEAPCCDR", _RAW),  # Canon CRW
    (b"%PDF-", "PDF"),
    (b"8BPS", "Photoshop"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    (b"\0\0\x01\0", "ICO"),
    (b"%!PS", "PostScript"),
    (b"<svg", "SVG"),
    (b"qoif", "QOI"),
    (b"v/1\x01", "OpenEXR"),
    (b"SIMPLE  =", "FITS"),
)
# Brands of ISO media files, the one that decides first: an AVIF may call itself mif1 first and name avif among the
# brands that it is compatible with; so may a HEIC with its own.
_BRANDS: tuple[tuple[tuple[bytes, ...], str], ...] = (
    ((b"avif", b"avis"), "AVIF"),
    ((b"crx ",), _RAW),  # Canon CR3
    ((b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs", b"mif1", b"msf1", b"miaf"), "HEIC"),
    ((b"isom", b"iso2", b"mp41", b"mp42", b"qt  ", b"M4V ", b"3gp4", b"3gp5"), "video"),
)
# Brands that are looked at; files list fewer than ten.
_MAX_BRANDS = 64


def sniff(data: bytes) -> str:
    """The format of `FORMATS` by the first bytes.

    Raises BadImage (no image known), UnsupportedMediaType (known, not read).
    """
    found = None
    if data[4:8] == b"ftyp":
        found = _media(data)
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        found = "WEBP"
    else:
        found = next((name for magic, name in _MAGIC if data.startswith(magic)), None)
    if found is None:
        what = f"{len(data)} bytes that are no image" if data else "no bytes"
        raise BadImage(f"found {what}; send a photo as {_listed()}")
    if found == _RAW:
        raise camera_raw()
    if found not in FORMATS:
        raise unsupported(f"found a {found} file")
    return found


def unsupported(found: str) -> UnsupportedMediaType:
    """The error for `found`, an image of a kind that is known and not read."""
    return UnsupportedMediaType(f"{found}; send a photo as {_listed()}", allowed=FORMATS)


def camera_raw() -> UnsupportedMediaType:
    """The error for the sensor's own data, whose preview is not the photo."""
    return unsupported("found a camera raw file; develop it (in the camera or a raw converter) and export it")


def _media(data: bytes) -> str | None:
    size = min(struct.unpack(">I", data[:4])[0], len(data), 16 + 4 * _MAX_BRANDS)
    brands = {data[8:12], *(data[at : at + 4] for at in range(16, size - 3, 4))}
    return next((name for known, name in _BRANDS if not brands.isdisjoint(known)), None)


def _listed() -> str:
    return f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
