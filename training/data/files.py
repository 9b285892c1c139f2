"""Photos and labels as files: how each is read, and what is refused, by name, before it can teach something wrong.

A photo is read as the server reads it (upright by EXIF, 16 bits, CMYK and transparency converted); labels are those of
the upright photo. A label is one byte or two a pixel whose value has a meaning, so nothing about it is converted.
`size` is (H, W) of the upright photo that a label belongs to; None allows any.
"""

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ptsa_serve.errors import RequestError
from ptsa_serve.images import ImageLimits, decode
from ptsa_serve.images.png import check_rows
from training.data.labels import IGNORE, SHORTEST_NORMAL
from training.errors import DataError

__all__ = [
    "plausible",
    "read_classes",
    "read_grey",
    "read_metres",
    "read_photo",
    "read_unit_vectors",
    "read_vectors",
    "unit_vectors",
]

# A folder of one's own may hold larger photos than strangers may send.
_LIMITS = ImageLimits(max_bytes=2**30, max_pixels=89_000_000)

# Metres that the middle pixel of a photo of a room may be away. Of NYU Depth v2: 1.0 to 6.2. A file in metres,
# centimetres or tenths of a millimetre lies outside.
_MIDDLE = (0.5, 12.0)
_UNKNOWN = 65_535  # what some cameras write for "unknown"
# Plausibility is looked at on every so manyth row and column: units are wrong everywhere or nowhere.
_EVERY = 4

_OFF_LENGTH = 0.1  # of normals, on average; of NYU Depth v2's, which JPEG blurs, it is less than 0.02

_RGB, _RGB_JPEG = "8-bit RGB", "an RGB JPEG"
_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
_ORIENTATION = 0x0112  # EXIF


def read_photo(path: Path, *, at_least: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """The upright photo, RGB uint8 (H, W, 3); with `at_least` (h, w) maybe at a fraction of its size, never below.

    Raises OSError, or DataError for what the server would not take for a photo, with the path in the message.
    """
    try:
        return decode(path.read_bytes(), _LIMITS, at_least=at_least).pixels
    except RequestError as error:
        raise DataError(f"{path}: not a usable photo: {error}; mend it or remove it") from None


def read_classes(path: Path, size: tuple[int, int] | None, classes: int, *, first: int = 0) -> NDArray[np.uint8]:
    """Class of each pixel, (H, W): 0 to `classes` - 1, or IGNORE. Raises OSError or DataError with the path.

    first: the file's number of class 0; lower numbers are no class.
    """
    stored = read_grey(path, size, "a PNG of one value a pixel: its class")
    if first:
        stored = np.where((stored < first) | (stored == IGNORE), IGNORE, stored.astype(np.int32) - first)
    wrong = np.unique(stored[(stored >= classes) & (stored != IGNORE)])
    if len(wrong):
        raise DataError(
            f"{path}: found class {', '.join(str(value + first) for value in wrong[:5])}; allowed are {first} to "
            f"{classes - 1 + first}, and {IGNORE} where there is no label; give the pixels of other classes the value "
            f"{IGNORE}"
        )
    return stored.astype(np.uint8)


def read_grey(path: Path, size: tuple[int, int] | None, wanted: str) -> NDArray:
    """The numbers (H, W) of a PNG of one channel, indices of a palette. Raises OSError or DataError, with `wanted`."""
    return _read(path, size, {"1-bit grey", "8-bit grey", "16-bit grey", "palette"}, wanted)


def read_metres(path: Path, size: tuple[int, int] | None) -> NDArray[np.float32]:
    """Depth of each pixel in metres, (H, W), 0 = none. Raises OSError or DataError with the path."""
    stored = _read(path, size, {"16-bit grey"}, "a 16-bit grey PNG of millimetres, 0 where there is no label")
    if stored.max() == _UNKNOWN:
        raise DataError(f"{path}: found the value {_UNKNOWN}; unknown depth is 0, and others are millimetres")
    metres: NDArray[np.float32] = stored.astype(np.float32) / np.float32(1000)
    plausible(path, metres, stored, "millimetres")
    return metres


def plausible(path: Path, metres: NDArray[np.float32], stored: NDArray, unit: str) -> None:
    """Raise DataError if `metres` (H, W), of which the file's numbers are `stored` in `unit`, are none in a room."""
    some = metres[::_EVERY, ::_EVERY]
    known = some[some > 0]
    middle = float(np.median(known)) if len(known) else _MIDDLE[0]
    if not _MIDDLE[0] <= middle <= _MIDDLE[1]:
        raise DataError(
            f"{path}: half of the depths are beyond {middle:.3g} m when its values ({stored[stored > 0].min():g} "
            f"to {stored.max():g}) are {unit}; in photos of rooms that is {_MIDDLE[0]:g} to {_MIDDLE[1]:g} m; convert "
            f"the file to {unit}"
        )


def read_unit_vectors(path: Path, size: tuple[int, int] | None) -> NDArray[np.float32]:
    """Normal of each pixel, (H, W, 3), unit length or (0, 0, 0): x right, y up, z towards the camera.

    Raises OSError or DataError with the path.
    """
    return unit_vectors(path, read_vectors(path, size))


def read_vectors(path: Path, size: tuple[int, int] | None) -> NDArray[np.float32]:
    """The vectors (H, W, 3) that an image of 8 bits holds as colours, black ones 0. Raises OSError or DataError."""
    stored = _read(path, size, {_RGB, _RGB_JPEG}, "an RGB PNG or JPEG of 8 bits, (normal + 1) * 127.5")
    return np.where(stored.any(-1, keepdims=True), stored.astype(np.float32) / 127.5 - 1, np.float32(0))


def unit_vectors(path: Path, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """`vectors` (H, W, 3) at length 1, short ones (0, 0, 0). Raises DataError for what are no normals that are seen."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    _check_unit_vectors(path, vectors[::_EVERY, ::_EVERY], length[::_EVERY, ::_EVERY, 0])
    return np.where(length > SHORTEST_NORMAL, vectors / np.maximum(length, SHORTEST_NORMAL), 0).astype(np.float32)


def _check_unit_vectors(path: Path, vectors: NDArray, length: NDArray) -> None:
    """Raise DataError for vectors (h, w, 3) that are no normals of surfaces which the camera sees."""
    known = length > SHORTEST_NORMAL
    if not known.any():
        return
    off = float(np.abs(length[known] - 1).mean())
    if off > _OFF_LENGTH:
        raise DataError(
            f"{path}: its vectors are {off:.2f} off length 1 on average, so they are no normals; "
            "allowed are colours (normal + 1) * 127.5, and (128, 128, 128) where there is no label"
        )
    if vectors[known, 2].mean() < 0:
        raise DataError(
            f"{path}: its normals point away from the camera; x is right, y is up, z is towards the camera: "
            "turn y and z around if the file has y down and z forward"
        )


def _read(path: Path, size: tuple[int, int] | None, allowed: set[str], wanted: str) -> NDArray:
    """The values of a label file as they are stored. Raises OSError, or DataError for another kind of file."""
    data = path.read_bytes()
    found = _kind(data)
    if found not in allowed:
        raise DataError(f"{path}: found {found}; a label is {wanted}; convert it without changing its values")
    try:
        values, orientation = _colors(data) if found in (_RGB, _RGB_JPEG) else _numbers(data)
    except Exception:  # Pillow's decoders raise nearly anything
        raise DataError(f"{path}: the file is damaged; copy it from the data set again") from None
    if orientation != 1:
        raise DataError(
            f"{path}: its EXIF block says orientation {orientation}; labels are stored as the upright photo is seen: "
            "turn the label and remove the block"
        )
    height, width = values.shape[:2]
    if size is not None and (height, width) != size:
        turned = "turn it as the photo is seen, " if (width, height) == size else ""
        raise DataError(
            f"{path}: the label is {width} x {height} pixels, its photo {size[1]} x {size[0]}; {turned}resize it with "
            "nearest neighbour or copy it from the data set again"
        )
    return values


def _colors(data: bytes) -> tuple[NDArray, int]:
    """Pixels (H, W, 3) and EXIF orientation, by the server's decoder: it finds damage that Pillow passes over."""
    photo = decode(data, _LIMITS)
    return photo.pixels, photo.orientation


def _numbers(png: bytes) -> tuple[NDArray, int]:
    """Values (H, W) of a PNG of one channel, indices of a palette, and EXIF orientation. Raises anything on damage."""
    with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
        values = np.asarray(image)
        orientation = image.getexif().get(_ORIENTATION, 1) if "exif" in image.info else 1
    check_rows(png)  # Pillow reads missing rows as 0, and 0 is a class
    return values, orientation


def _kind(data: bytes) -> str:
    """What a label file holds, by its header: bits and channels of a PNG, or of a JPEG."""
    if data.startswith(_PNG) and len(data) > 25:
        bits, color = data[24], data[25]
        names = {0: f"{bits}-bit grey", 2: f"{bits}-bit RGB", 3: "palette", 4: "grey with transparency"}
        return names.get(color, "RGB with transparency")
    if data.startswith(_JPEG):
        try:
            with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
                return {"L": "a grey JPEG", "RGB": _RGB_JPEG}.get(image.mode, f"a JPEG of {image.mode}")
        except OSError:
            return "a damaged JPEG"
    return "neither PNG nor JPEG" if data else "an empty file"
