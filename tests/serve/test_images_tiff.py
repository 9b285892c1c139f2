"""TIFF: tags decide which image is the photo and what its pixels mean; camera raw is named."""

import io
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from ptsa_serve.errors import BadImage, DeadlineExceeded, RequestError, UnsupportedMediaType
from ptsa_serve.images import ImageLimits, decode, inspect

LIMITS = ImageLimits()
HEIGHT, WIDTH = 35, 50
Tags = dict[int, list[int]]


def tiff(directories: list[tuple[Tags, bytes]], endian: str = "<", start: bytes = b"") -> bytes:
    """A TIFF whose images lie one after the other; a tag of -330 takes the place of the next one's address.

    Each is its tags and the bytes of its single strip; all values are written with 4 bytes.
    """
    data = bytearray((b"II*\0" if endian == "<" else b"MM\0*") + bytes(4) + start)
    link = 4
    for position, (tags, strip) in enumerate(directories):
        tags = {**tags, 273: [len(data)], 279: [len(strip)]}
        data += strip + bytes(len(strip) % 2)
        places = {}
        for tag, values in tags.items():
            if len(values) > 1:
                places[tag] = len(data)
                data += struct.pack(f"{endian}{len(values)}I", *values)
        struct.pack_into(f"{endian}I", data, link, len(data))
        data += struct.pack(f"{endian}H", len(tags))
        sub = 0
        for tag, values in sorted(tags.items()):
            if tag == 330:
                sub = len(data) + 8
            value = places.get(tag, values[0])
            data += struct.pack(f"{endian}HHII", tag, 4, len(values), value)
        link = len(data)
        data += bytes(4)
        if sub and position + 1 < len(directories):
            link = sub
    return bytes(data)


def image(values: np.ndarray, bits: int, photometric: int, **more: list[int]) -> Tags:
    height, width, samples = values.shape
    tags = {256: [width], 257: [height], 258: [bits] * samples, 262: [photometric], 277: [samples], 278: [height]}
    return tags | {int(tag[1:]): value for tag, value in more.items()}


def packed(values: np.ndarray, bits: int, endian: str = "<") -> bytes:
    """Rows of numbers of `bits` bits, the highest first; 16 bits in byte order."""
    if bits == 16:
        return values.astype(f"{endian}u2").tobytes()
    single = (values.reshape(len(values), -1, 1) >> np.arange(bits - 1, -1, -1)) & 1
    return np.packbits(single.reshape(len(values), -1).astype(np.uint8), axis=1).tobytes()


def noise(bits: int, samples: int = 1) -> np.ndarray:
    return np.random.default_rng(bits).integers(0, 1 << bits, (HEIGHT, WIDTH, samples))


def scaled(values: np.ndarray, bits: int) -> np.ndarray:
    return np.rint(values * 255 / ((1 << bits) - 1)).astype(int)


def pixels(data: bytes) -> np.ndarray:
    return decode(data, LIMITS).pixels.astype(int)


@pytest.mark.parametrize("endian", ["<", ">"])
@pytest.mark.parametrize("bits", [1, 2, 4, 6, 8, 10, 12, 14, 16])
@pytest.mark.parametrize("photometric", [0, 1, 2])
@pytest.mark.parametrize("compression", [1, 8])
def test_significant_bits_and_photometric_are_respected(endian: str, bits: int, photometric: int, compression: int):
    values = noise(bits, 3 if photometric == 2 else 1)
    strip = packed(values, bits, endian)
    strip = zlib.compress(strip) if compression == 8 else strip
    found = pixels(tiff([(image(values, bits, photometric, t259=[compression]), strip)], endian))
    expected = scaled(values, bits)
    assert np.array_equal(found, np.broadcast_to(255 - expected if photometric == 0 else expected, found.shape))


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"])
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr"])
def test_what_libtiff_writes_is_read_as_pillow_reads_it(compression: str, mode: str):
    photo = Image.fromarray(noise(8, 3).astype(np.uint8)).convert(mode)
    file = io.BytesIO()
    photo.save(file, "TIFF", compression=compression)
    assert np.array_equal(pixels(file.getvalue()), np.asarray(photo.convert("RGB")))


def test_16_bit_cmyk_is_converted():
    values = noise(16, 4)
    expected = Image.frombytes("CMYK", (WIDTH, HEIGHT), scaled(values, 16).astype(np.uint8).tobytes()).convert("RGB")
    assert np.array_equal(pixels(tiff([(image(values, 16, 5), packed(values, 16))])), np.asarray(expected))


@pytest.mark.parametrize("bits", [8, 16])
def test_planes_and_differences_are_put_together(bits: int):
    values = noise(bits, 3)
    kind = np.dtype(f"<u{bits // 8}")
    strip = zlib.compress(np.diff(values.astype(kind), axis=1, prepend=kind.type(0)).tobytes())
    assert np.array_equal(pixels(tiff([(image(values, bits, 2, t259=[8], t317=[2]), strip)])), scaled(values, bits))
    # Planes: one strip each, listed by hand.
    planes = values.astype(kind).transpose(2, 0, 1)
    data = tiff([(image(values, bits, 2, t284=[2]), planes.tobytes())])
    offsets = [8 + index * planes[0].nbytes for index in range(3)]
    data = replaced(data, {273: offsets, 279: [planes[0].nbytes] * 3})
    assert np.array_equal(pixels(data), scaled(values, bits))


def replaced(data: bytes, arrays: dict[int, list[int]]) -> bytes:
    """A little-endian TIFF of one image with other values for some tags."""
    out = bytearray(data)
    (at,) = struct.unpack_from("<I", out, 4)
    (count,) = struct.unpack_from("<H", out, at)
    for entry in range(at + 2, at + 2 + 12 * count, 12):
        values = arrays.get(struct.unpack_from("<H", out, entry)[0])
        if values:
            struct.pack_into("<HII", out, entry + 2, 4, len(values), values[0] if len(values) == 1 else len(out))
            out += struct.pack(f"<{len(values)}I", *values)
    return bytes(out)


@pytest.mark.parametrize(
    ("extra", "expected"),
    [(None, (200, 100, 50)), ([0], (200, 100, 50)), ([1], (255, 255, 255)), ([2], (255, 255, 255))],
)
@pytest.mark.parametrize("bits", [8, 16])
def test_alpha_is_what_the_file_calls_alpha(extra: list[int] | None, expected: tuple[int, ...], bits: int):
    values = np.zeros((HEIGHT, WIDTH, 4), int)
    values[..., :3] = np.array([200, 100, 50]) * (257 if bits == 16 else 1)
    more = {} if extra is None else {"t338": extra}
    found = pixels(tiff([(image(values, bits, 2, **more), packed(values, bits))]))
    assert tuple(found[3, 3]) == expected


def test_palette_of_16_bit_colors():
    values = noise(8)
    colors = np.random.default_rng(1).integers(256, 65536, (3, 256))
    found = pixels(tiff([(image(values, 8, 3, t320=colors.ravel().tolist()), packed(values, 8))]))
    assert np.array_equal(found, (colors >> 8).T[values[..., 0]])


@pytest.mark.parametrize("form", ["signed", "float", "32 bits", "Lab"])
def test_pixels_without_one_brightness_are_refused(form: str):
    values = noise(8, 3)
    more = {"signed": {"t339": [2]}, "float": {"t339": [3]}}.get(form, {})
    tags = image(values, 32 if form == "32 bits" else 8, 8 if form == "Lab" else 2, **more)
    with pytest.raises(UnsupportedMediaType, match="8 or 16 bits"):
        decode(tiff([(tags, bytes(values.size * 4))]), LIMITS)


def small(**more: list[int]) -> tuple[Tags, bytes]:
    values = np.full((20, 30, 3), 9)
    return image(values, 8, 2, **more), packed(values, 8)


def large(photometric: int = 2, **more: list[int]) -> tuple[Tags, bytes]:
    values = noise(8, 1 if photometric == 32803 else 3)
    return image(values, 8, photometric, **more), packed(values, 8)


RAW = {
    "DNG": tiff([small(t254=[1], t50706=[1], t330=[0]), large(32803)]),
    "DNG of one image": tiff([large(50706, t50706=[1])]),
    "linear DNG": tiff([small(t254=[1], t330=[0]), large(34892)]),
    "NEF, ARW": tiff([small(t254=[1], t330=[0]), large(32803, t259=[34713])]),
    "preview called whole": tiff([small(t330=[0]), large(32803)]),
    "PEF": tiff([large(32803, t259=[65535])]),
    "CFA behind": tiff([small(), large(32803)], ">"),
    "CR2": tiff([small()], start=b"CR\2\0\0\0\0\0"),
    "IIQ": tiff([small()], start=b"IIII"),
    "CR3": b"\0\0\0\x18ftypcrx \0\0\0\1crx isom" + bytes(200),
    "ORF": b"IIRO\x08\0\0\0" + bytes(200),
    "RW2": b"IIU\0\x08\0\0\0" + bytes(200),
    "RAF": b"FUJIFILMCCD-RAW 0201" + bytes(200),
}


@pytest.mark.parametrize("name", RAW)
def test_camera_raw_is_named_with_what_to_do(name: str):
    with pytest.raises(UnsupportedMediaType, match=r"camera raw.*export it; send a photo as JPEG"):
        inspect(RAW[name], LIMITS)


@pytest.mark.parametrize("where", ["after", "below"])
@pytest.mark.parametrize("mark", [{"t254": [1]}, {"t255": [2]}])
def test_thumbnail_never_passes_for_the_photo(where: str, mark: dict[str, list[int]]):
    below = {"t330": [0]} if where == "below" else {}
    photo = large()
    data = tiff([small(**mark, **below, t274=[6]), photo])
    assert np.array_equal(np.rot90(pixels(data)), noise(8, 3))
    with pytest.raises(UnsupportedMediaType, match="thumbnail"):
        inspect(tiff([small(**mark)]), LIMITS)


def test_tiff_of_a_camera_is_no_camera_raw():
    """Make, Exif and pages of other kinds are no sign of a sensor's data."""
    assert np.array_equal(pixels(tiff([large(t271=[0], t34665=[8]), small(t254=[1])])), noise(8, 3))


@pytest.mark.parametrize("compression", [1, 8, 32773])
def test_strip_that_ends_early_is_refused(compression: int):
    values = noise(8, 3)
    raw = packed(values, 8)[:-300]
    strip = {
        1: raw,
        8: zlib.compress(raw),
        32773: b"".join(bytes([99]) + raw[i : i + 100] for i in range(0, 4900, 100)),
    }
    with pytest.raises(BadImage):
        decode(tiff([(image(values, 8, 2, t259=[compression]), strip[compression])]), LIMITS)


def jpeg_tiff(photo: bytes, **options: object) -> bytes:
    file = io.BytesIO()
    with Image.open(io.BytesIO(photo)) as image:
        image.save(file, "JPEG", **options)
        tags = {
            256: [image.width],
            257: [image.height],
            258: [8] * 3,
            259: [7],
            262: [6],
            277: [3],
            278: [image.height],
        }
    return tiff([(tags, file.getvalue())])


def test_jpeg_in_tiff_is_held_to_the_rules_of_jpeg(photo_jpeg: bytes):
    data = jpeg_tiff(photo_jpeg)
    with Image.open(io.BytesIO(data)) as image:
        assert np.array_equal(pixels(data), np.asarray(image.convert("RGB")))
    at = len(data) // 2
    with pytest.raises(BadImage):
        decode(data[:at] + bytes(100) + data[at + 100 :], LIMITS)


def test_scans_of_jpegs_in_tiff_are_counted():
    file = io.BytesIO()
    Image.new("RGB", (2000, 2000)).save(file, "JPEG", progressive=True)
    jpeg = file.getvalue()
    strip = jpeg[:-2] + jpeg[jpeg.rfind(b"\xff\xda") : -2] * 3000 + b"\xff\xd9"
    tags = {256: [2000], 257: [2000], 258: [8] * 3, 259: [7], 262: [6], 277: [3], 278: [2000]}
    started = time.process_time()
    with pytest.raises(BadImage, match="scans"):
        decode(tiff([(tags, strip)]), LIMITS)
    assert time.process_time() - started < 1


@pytest.mark.parametrize(
    "tags",
    [
        {322: [16], 323: [16]},  # hundreds of thousands of tiles
        {322: [1 << 20], 323: [1 << 20]},  # one tile, far larger than the photo
        {277: [500]},
    ],
)
def test_blocks_and_samples_are_bounded(tags: Tags):
    base = {256: [7000], 257: [5000], 258: [8], 262: [1], 277: [1], 278: [1], 324: [8], 325: [99]}
    with pytest.raises(UnsupportedMediaType):
        inspect(tiff([({**base, **tags}, bytes(100))]), LIMITS)


def test_directories_that_go_round_end():
    data = bytearray(tiff([small()]))
    data[-4:] = data[4:8]
    assert tuple(pixels(bytes(data))[0, 0]) == (9, 9, 9)


def test_deadline_ends_the_work_between_bands():
    values = np.zeros((4000, 4000, 1), int)
    data = tiff([(image(values, 12, 1, t278=[16]) | {256: [16000], 257: [2000], 278: [16]}, bytes(24000 * 16))])
    data = replaced(data, {273: [8] * 125, 279: [24000 * 16] * 125})
    started = time.process_time()
    with pytest.raises(DeadlineExceeded):
        decode(data, LIMITS, deadline=time.monotonic() + 0.1)
    assert time.process_time() - started < 0.8


def test_damaged_tags_give_pixels_or_a_typed_error():
    random = np.random.default_rng(3)
    seed = tiff([small(t330=[0]), large(t259=[8])])
    for _ in range(300):
        data = bytearray(seed)
        for place in random.integers(4, len(data), 3):
            data[place] = int(random.integers(0, 256))
        tail = len(data) - int(random.integers(1, 400))
        data[tail] ^= 0xFF
        try:
            decode(bytes(data), LIMITS)
        except RequestError:
            continue
