"""Files as people have them: read as what they are, or refused by name with what to do."""

import io
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.data import DATASETS
from training.data.photos import PhotoFolder, PhotoStream

SIZE = (48, 64)
GREY = np.full(SIZE, 7, np.uint8)
DEPTH = np.full(SIZE, 2500, np.uint16)
NORMAL = np.full((*SIZE, 3), (128, 128, 255), np.uint8)
COLORS = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), np.uint8)


def png(array: np.ndarray, mode: str | None = None, **options: object) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(buffer, "PNG", **options)
    return buffer.getvalue()


def palette(array: np.ndarray) -> bytes:
    image = Image.frombytes("P", array.shape[::-1], array.tobytes())
    image.putpalette(np.random.default_rng(1).integers(0, 255, 768).tolist())
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def raw_png(bits: int, color: int, rows: list[bytes]) -> bytes:
    """A PNG of `SIZE` written by hand: the bits that Pillow does not write, and fewer rows than it should have."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", SIZE[1], SIZE[0], bits, color, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def jpeg(array: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def exif(orientation: int) -> Image.Exif:
    block = Image.Exif()
    block[0x0112] = orientation
    return block


Read = Callable[[str, bytes], object]


@pytest.fixture
def read(data: dict[str, Path], tmp_path: Path) -> Read:
    """`read(path below the set, bytes)`: the first sample of a copy of the set in which this file is another one."""

    def run(path: str, content: bytes) -> object:
        name = path.partition("/")[0]
        shutil.copytree(data[name], tmp_path / name)
        (tmp_path / path).write_bytes(content)
        return DATASETS[name](tmp_path / name, "train")[0]

    return run


SEGMENTATION, DEPTHS, NORMALS = (
    "nyu/train/segmentation/0000.png",
    "nyu/train/depth/0000.png",
    "nyu/train/normals/0000.jpg",
)
REFUSED = {
    "class 77": (SEGMENTATION, png(GREY + 70), "found class 77; allowed are 0 to 38, and 255"),
    "classes counted from 1": (SEGMENTATION, png(GREY + 32), "found class 39; allowed are 0 to 38"),
    "class of 16 bits": (SEGMENTATION, png(DEPTH), "found class 2500"),
    "segmentation in colours": (SEGMENTATION, png(COLORS), "found 8-bit RGB; a label is a PNG of one value a pixel"),
    "segmentation with alpha": (SEGMENTATION, png(COLORS, "RGBA"), "found RGB with transparency"),
    "grey with alpha": (SEGMENTATION, png(GREY, "LA"), "found grey with transparency"),
    "4 bits, which Pillow scales": (SEGMENTATION, raw_png(4, 0, [b"\x11" * 32] * 48), "found 4-bit grey"),
    "half of the rows": (SEGMENTATION, raw_png(8, 0, [b"\7" * 64] * 24), "the file is damaged"),
    "truncated": (SEGMENTATION, png(COLORS[..., 0] % 39)[:-900], "the file is damaged"),
    "JPEG named PNG": (SEGMENTATION, jpeg(GREY), "found a grey JPEG; a label is a PNG"),
    "text": (SEGMENTATION, b"hello", "found neither PNG nor JPEG"),
    "empty": (DEPTHS, b"", "found an empty file"),
    "turned label": (SEGMENTATION, png(GREY, exif=exif(6)), "EXIF block says orientation 6"),
    "depth of 8 bits": (DEPTHS, png(GREY), "found 8-bit grey; a label is a 16-bit grey PNG of millimetres"),
    "depth in colours": (DEPTHS, png(COLORS), "found 8-bit RGB; a label is a 16-bit grey PNG"),
    "depth in metres": (DEPTHS, png(DEPTH // 1000), r"beyond 0\.002 m .* convert the file to millimetres"),
    "depth in centimetres": (DEPTHS, png(DEPTH // 10), r"beyond 0\.25 m when its values \(250 to 250\)"),
    "depth in tenths of millimetres": (DEPTHS, png(DEPTH * 10), "beyond 25 m"),
    "depth with 65535 for unknown": (
        DEPTHS,
        png(np.where(np.arange(64) < 9, np.uint16(65_535), DEPTH)),
        "found the value 65535; unknown depth is 0",
    ),
    "depth on its side": (DEPTHS, png(DEPTH.T.copy()), "48 x 64 pixels, its photo 64 x 48; turn it as the photo"),
    "grey normals": (NORMALS, jpeg(GREY), "found a grey JPEG; a label is an RGB PNG or JPEG"),
    "a photo for normals": (NORMALS, jpeg(COLORS), "off length 1 on average, so they are no normals"),
    "normals with z forward": (NORMALS, jpeg(255 - NORMAL), "point away from the camera"),
    "soft saliency": ("ccp/train/0000.png", png(COLORS[..., 0]), r"found class \d+.*; allowed are 0 to 58, and 255"),
    "a mask of 0 and 255": (
        "ccp/train/0000.png",
        png(np.where(GREY.cumsum(1) > 99, np.uint8(255), np.uint8(0))),
        "mask",
    ),
    "a photo that is none": ("nyu/train/image/0000.jpg", b"<html>", "not a usable photo: .*; mend it or remove it"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_file_is_refused_by_name(read: Read, case: str) -> None:
    path, content, message = REFUSED[case]
    with pytest.raises(ValueError, match=f"{path}: .*({message})"):
        read(path, content)


LABELS = {
    "palette": (palette(GREY), GREY),
    "16 bits": (png(GREY.astype(np.uint16)), GREY),
    "1 bit": (png(GREY < 9, "1"), np.ones(SIZE)),
    "void": (png(np.full(SIZE, 255, np.uint8)), np.full(SIZE, 255)),
}


@pytest.mark.parametrize("case", LABELS)
def test_a_class_map_is_read_by_its_values(read: Read, case: str) -> None:
    content, expected = LABELS[case]
    label = read(SEGMENTATION, content).labels["segmentation"]
    assert label.dtype == np.uint8
    np.testing.assert_array_equal(label, expected)


def test_an_interlaced_label_is_whole(read: Read) -> None:
    """Pillow writes none: row by row of each pass."""
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    rows = [row.tobytes() for x, y, dx, dy in passes for row in GREY[y::dy, x::dx]]
    content = bytearray(raw_png(8, 0, rows))
    content[28] = 1
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    np.testing.assert_array_equal(read(SEGMENTATION, bytes(content)).labels["segmentation"], GREY)


def test_255_of_a_person_map_is_no_label(read: Read) -> None:
    label = np.repeat(np.array([0, 5, 58, 255], np.uint8), 16)[None].repeat(48, 0)
    saliency = read("ccp/train/0000.png", png(label)).labels["saliency"]
    assert saliency[0, ::16].tolist() == [0, 1, 1, 255]


def rotated(orientation: int) -> bytes:
    """A photo, red at the left, stored so that EXIF turns it upright to 64 x 48."""
    upright = np.zeros((*SIZE, 3), np.uint8)
    upright[:, :32, 0] = 255
    stored = {1: upright, 3: upright[::-1, ::-1], 6: np.rot90(upright), 8: np.rot90(upright, -1)}[orientation]
    return jpeg(np.ascontiguousarray(stored), exif=exif(orientation))


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_labels_belong_to_the_upright_photo(read: Read, orientation: int) -> None:
    sample = read("nyu/train/image/0000.jpg", rotated(orientation))
    assert sample.image.shape == (*SIZE, 3)
    assert sample.image[24, 8, 0] > 200 > 50 > sample.image[24, 56, 0]


def photos_as_served() -> dict[str, bytes]:
    cmyk = io.BytesIO()
    Image.fromarray(NORMAL).convert("CMYK").save(cmyk, "JPEG")
    return {
        "16-bit grey": png(np.full(SIZE, 128 * 257, np.uint16)),
        "palette": palette(GREY),
        "transparent": png(np.dstack([COLORS, GREY])),
        "CMYK": cmyk.getvalue(),
        "turned": rotated(6),
    }


@pytest.mark.parametrize("case", photos_as_served())
def test_training_sees_a_photo_as_the_server_does(read: Read, tmp_path: Path, case: str) -> None:
    from ptsa_serve.images import ImageLimits, decode

    content = photos_as_served()[case]
    served = decode(content, ImageLimits()).pixels
    np.testing.assert_array_equal(read("nyu/train/image/0000.jpg", content).image, served)
    folder = tmp_path / "one"
    folder.mkdir()
    (folder / "photo.JPG").write_bytes(content)
    sample = PhotoStream([PhotoFolder(folder)], size=48, length=1)[0].float()
    assert abs(float(sample.mean()) - served.mean()) < 50  # of 16 bits, 255 was seen instead of 128


def test_a_photo_that_pretraining_cannot_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(rotated(1)[:300])
    with pytest.raises(ValueError, match=r"broken\.jpg: not a usable photo: .*; mend it or remove it"):
        PhotoStream([PhotoFolder(tmp_path)], size=48, length=1)[0]


def test_only_files_are_photos(tmp_path: Path) -> None:
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "folder.jpg/a.JPEG").write_bytes(rotated(1))
    (tmp_path / "notes.txt").write_text("no photo")
    assert [path.name for path in PhotoFolder(tmp_path).files()] == ["a.JPEG"]
