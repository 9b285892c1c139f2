"""WebP, BMP and AVIF to pixels: formats that Pillow reads as they are."""

import numpy as np
from PIL import Image

from ptsa_serve.images.levels import on_white, rgb_of
from ptsa_serve.images.limits import Clock, Watched
from ptsa_serve.images.source import Source
from ptsa_serve.images.tags import orientation

__all__ = ["open_avif", "open_bmp", "open_webp"]


def open_webp(data: bytes, clock: Clock) -> Source:
    """Raises BadImage."""
    return _open("WEBP", data, clock)


def open_avif(data: bytes, clock: Clock) -> Source:
    """Raises BadImage. AVIF has properties for turning, `irot` and `imir`; by its standard they replace EXIF's."""
    if data[8:12] not in (b"avif", b"avis"):
        # It is compatible with one of them, else nobody would be here; Pillow looks at the first brand alone.
        still = b"avif" in data[16 : int.from_bytes(data[:4], "big")]
        data = data[:8] + (b"avif" if still else b"avis") + data[12:]
    return _open("AVIF", data, clock)


def open_bmp(data: bytes, clock: Clock) -> Source:
    """Raises BadImage."""
    return _open("BMP", data, clock)


def _open(name: str, data: bytes, clock: Clock) -> Source:
    file = Watched(data, clock)
    image = Image.open(file, formats=[name])
    file.header_done()

    def pixels(smallest: tuple[int, int]) -> np.ndarray:
        del smallest
        clock.check()
        image.load()
        return _opaque_if_empty(image) if name == "BMP" else rgb_of(image)

    return Source(*image.size, orientation(image.info.get("exif", b"")), pixels)


def _opaque_if_empty(image: Image.Image) -> np.ndarray:
    """uint8 (h, w, 3): many programs write BMPs with an alpha channel and leave it zero; others show those opaque."""
    if image.mode == "RGBA" and image.getchannel("A").getbbox():
        return on_white(image)
    return np.asarray(image.convert("RGB"))
