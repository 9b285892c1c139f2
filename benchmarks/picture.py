"""What do the maps look like? A row a photo: the photo, then each map in colours."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ptsa_serve.encoding.colors import blend, colorize
from ptsa_serve.images import ImageLimits, decode
from ptsa_serve.predictor import Predictor

__all__ = ["draw"]

_CELL_HEIGHT = 240
_CAPTION = 22
_GAP = 6


def draw(predictor: Predictor, photos: Sequence[Path], out: Path) -> None:
    """Write a contact sheet of `photos` and their maps; classes are laid over the photo."""
    rows = [_row(predictor, photo.read_bytes()) for photo in photos]
    names = ["photo", *predictor.tasks]
    width = max(sum(cell.width + _GAP for cell in row) for row in rows) - _GAP
    sheet = Image.new("RGB", (width, (_CELL_HEIGHT + _CAPTION) * len(rows)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for number, row in enumerate(rows):
        top, left = number * (_CELL_HEIGHT + _CAPTION), 0
        for name, cell in zip(names, row, strict=True):
            pen.text((left + 2, top + 2), name, fill="black", font=font)
            sheet.paste(cell, (left, top + _CAPTION))
            left += cell.width + _GAP
    sheet.save(out, quality=88)


def _row(predictor: Predictor, data: bytes) -> list[Image.Image]:
    prediction = predictor.predict(data)
    height, width = prediction.size
    photo = np.asarray(Image.fromarray(decode(data, ImageLimits()).pixels).resize((width, height)))
    cells = [photo]
    for name, values in prediction.maps.items():
        colors = colorize(prediction.tasks[name], values)
        cells.append(blend(colors, photo, 0.65) if prediction.tasks[name].kind == "classes" else colors)
    size = (round(width * _CELL_HEIGHT / height), _CELL_HEIGHT)
    return [Image.fromarray(cell).resize(size, Image.Resampling.LANCZOS) for cell in cells]
