from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export.photos import choose_photos, photo_at


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index in range(10):
        Image.new("RGB", (40, 30)).save(tmp_path / f"{index}.jpg")
        Image.new("L", (40, 30)).save(tmp_path / f"{index}.png")
    return tmp_path


def test_photos_are_spread_over_all_and_labels_left_out(folder: Path) -> None:
    assert [path.name for path in choose_photos([folder], 4)] == ["0.jpg", "3.jpg", "6.jpg", "9.jpg"]


def test_fewer_photos_than_asked_for_are_all_taken(folder: Path) -> None:
    assert len(choose_photos([folder], 50)) == 10
    assert choose_photos([folder / "3.png"], 50) == [folder / "3.png"]


def test_a_folder_without_photos_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no JPEG below"):
        choose_photos([tmp_path], 4)


def test_a_photo_comes_at_the_size_asked_for(photo: Path) -> None:
    pixels = photo_at(photo, (64, 96))
    assert pixels.shape == (64, 96, 3)
    assert pixels.dtype == np.uint8
    assert pixels.std() > 20
