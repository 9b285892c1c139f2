"""Data sets as people have them: labels of some photos, folders left out, damaged copies; nothing passes in silence."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from training.data import DATASETS
from training.data.labels import LabelledPhoto, labelled
from training.data.mix import Mix, Source
from training.data.opening import check_labels, open_set
from training.data.transforms import Augmentation

SIZE = (32, 64)


@pytest.fixture
def copy(data: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """`copy(name)`: the train folder of a copy of the data set, to be damaged."""

    def run(name: str) -> Path:
        shutil.copytree(data[name], tmp_path / name)
        return tmp_path / name / "train"

    return run


def test_a_photo_without_a_label_file_has_no_label(copy, capsys: pytest.CaptureFixture) -> None:
    folder = copy("nyu")
    for task, suffix in (("segmentation", "png"), ("depth", "png"), ("normals", "jpg")):
        (folder / task / f"0001.{suffix}").unlink()
    (folder / "depth/0003.png").unlink()
    data = open_set("nyu", folder.parent, "train")
    assert capsys.readouterr().err == ("nyu/train: 5 photos; with labels of segmentation 4, depth 3, normals 4\n")
    for task, kind in (("segmentation", "classes"), ("depth", "metres"), ("normals", "unit_vectors")):
        assert not labelled(kind, data[1].labels[task]).any()
        assert labelled(kind, data[0].labels[task]).all()
        assert data[1].labels[task].dtype == data[0].labels[task].dtype
        assert data[1].labels[task].shape == data[0].labels[task].shape


def test_batches_hold_photos_with_and_without_labels(copy) -> None:
    folder = copy("ccp")
    (folder / "0002.png").unlink()
    data = open_set("ccp", folder.parent, "train")
    source = Source(data, size=SIZE, augment=Augmentation(), seed=0)
    batch = next(Mix({"ccp": (source, 5)}, workers=0).steps(0, 1))["ccp"]
    missing = [bool((label == 255).all()) for label in batch["saliency"]]
    assert [name for name, none in zip(batch["name"], missing, strict=True) if none] == ["0002"]


def test_a_task_without_a_folder_is_none_of_the_set(copy, capsys: pytest.CaptureFixture) -> None:
    folder = copy("nyu")
    shutil.rmtree(folder / "depth")
    data = open_set("nyu", folder.parent, "train")
    assert data.tasks == ("segmentation", "normals")
    assert set(data[0].labels) == {"segmentation", "normals"}
    assert "depth 0," in capsys.readouterr().err


def emptied(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def renamed(path: Path, name: str) -> None:
    path.rename(path.with_name(name))


DAMAGES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "no photos": ("nyu", lambda f: emptied(f / "image"), "image: no photos; expected train/"),
    "an empty folder of labels": ("nyu", lambda f: emptied(f / "depth"), "depth: no labels; put depth files"),
    "a label without its photo": ("nyu", lambda f: (f / "image/0002.jpg").unlink(), "0002.png: there is no photo 0002"),
    "labels of another type": ("nyu", lambda f: renamed(f / "depth/0001.png", "0001.tiff"), "0001.tiff: labels of"),
    "arrays": ("nyu", lambda f: renamed(f / "normals/0001.jpg", "0001.npy"), "0001.npy: labels of normals are"),
    "two of one name": ("nyu", lambda f: shutil.copy(f / "image/0001.jpg", f / "image/0001.JPEG"), "has the same name"),
    "no label at all": ("ccp", lambda f: [p.unlink() for p in f.glob("*.png")], "photos without any labels"),
    "a person without a photo": ("ccp", lambda f: (f / "0002.jpg").unlink(), "0002.png: there is no photo 0002.jpg"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_copy_is_refused_by_name(copy, damage: str) -> None:
    name, break_it, message = DAMAGES[damage]
    folder = copy(name)
    break_it(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        open_set(name, folder.parent, "train")


def test_photos_of_any_suffix_that_is_served_are_seen(copy) -> None:
    folder = copy("nyu")
    renamed(folder / "image/0000.jpg", "0000.JPG")
    renamed(folder / "image/0001.jpg", "0001.jpeg")
    Image.open(folder / "image/0002.jpg").save(folder / "image/0002.png")
    (folder / "image/0002.jpg").unlink()
    renamed(folder / "depth/0001.png", "0001.PNG")
    (folder / "image/.hidden.jpg").write_bytes(b"")
    data = open_set("nyu", folder.parent, "train")
    assert len(data) == 5
    assert all(labelled("metres", data[i].labels["depth"]).all() for i in range(5))


def test_labels_that_say_nothing_at_all_are_refused_before_training(copy) -> None:
    folder = copy("nyu")
    paths = sorted((folder / "segmentation").iterdir())
    for path in paths[1:]:
        Image.fromarray(np.full((48, 64), 255, np.uint8)).save(path)
    check_labels(open_set("nyu", folder.parent, "train"))
    Image.fromarray(np.full((48, 64), 255, np.uint8)).save(paths[0])
    with pytest.raises(ValueError, match=r"0000\.png: no pixel has a label, nor has any of segmentation in 5 photos"):
        check_labels(open_set("nyu", folder.parent, "train"))


def test_one_wrong_file_of_many_is_found_before_training(copy) -> None:
    folder = copy("nyu")
    Image.fromarray(np.full((48, 64), 77, np.uint8)).save(folder / "segmentation/0004.png")
    with pytest.raises(ValueError, match=r"segmentation/0004\.png: found class 77"):
        check_labels(open_set("nyu", folder.parent, "train"))


def test_an_unknown_set_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'kitti' is unknown; known are nyu, ccp"):
        open_set("kitti", tmp_path, "train")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_wrong_file_met_by_a_worker_is_told_as_if_there_were_none(copy, workers: int) -> None:
    folder = copy("nyu")
    Image.fromarray(np.full((48, 64), 77, np.uint8)).save(folder / "segmentation/0003.png")
    source = Source(DATASETS["nyu"](folder.parent, "train"), size=SIZE, augment=Augmentation(), seed=0)
    with pytest.raises(ValueError, match=r"0003\.png: found class 77") as caught:
        list(Mix({"nyu": (source, 5)}, workers=workers).steps(0, 1))
    assert "Traceback" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_data_set_draws_numbers_of_its_own(data: dict[str, Path]) -> None:
    drawn = []

    def augment(sample: LabelledPhoto, rng: np.random.Generator) -> LabelledPhoto:
        drawn.append(tuple(rng.random(3)))
        return sample

    for name, root in data.items():
        source = Source(DATASETS[name](root, "train"), size=SIZE, augment=augment, seed=0)
        for index in range(40):
            source[index]
    assert len(set(drawn)) == len(drawn) == 80


def test_sets_of_one_length_have_orders_of_their_own(data: dict[str, Path]) -> None:
    sources = [
        Source(DATASETS[n](root, "train"), size=SIZE, augment=Augmentation(), seed=0) for n, root in data.items()
    ]
    orders = [[source[index]["name"] for index in range(20)] for source in sources]
    assert orders[0] != orders[1]
    for order in orders:
        assert all(sorted(order[i : i + 5]) == [f"{k:04}" for k in range(5)] for i in range(0, 20, 5))


def test_a_sample_is_the_same_whenever_it_is_drawn(data: dict[str, Path]) -> None:
    one, two = (
        Source(DATASETS["nyu"](data["nyu"], "train"), size=SIZE, augment=Augmentation(), seed=3)[7] for _ in range(2)
    )
    assert all(torch.equal(one[key], two[key]) for key in one if key != "name")
