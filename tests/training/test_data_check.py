"""`data check` as people use it: whole sets pass, and each thing that is wrong or odd in a copy is said by name."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from training.__main__ import main
from training.data.check import CheckConfig, check, recognise
from training.data.mirrored import mirror_fits_better, surely_mirrored

LAYOUTS = {"nyu": "nyu", "ccp": "ccp", "nyud_arrays": "nyud", "nyud_images": "nyud", "pascal": "pascal"}


@pytest.fixture
def folders(data: dict[str, Path], archives: dict[str, Path]) -> dict[str, Path]:
    return data | archives


@pytest.fixture
def copy(folders: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    return lambda name: shutil.copytree(folders[name], tmp_path / name)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_whole_set_is_recognised_and_has_no_faults(folders: dict[str, Path], name: str) -> None:
    assert recognise(folders[name]) == LAYOUTS[name]
    report = check(CheckConfig(folders[name]))
    assert report.text.startswith(f"{folders[name]}: {LAYOUTS[name]}\n")
    assert report.text.endswith("\nno faults")
    assert not report.failed


def test_json_tells_photos_labels_sizes_and_ranges(archives: dict[str, Path]) -> None:
    found = json.loads(check(CheckConfig(archives["nyud_arrays"], json=True)).text)
    train = found["splits"]["train"]
    assert (train["photos"], train["read"], train["sizes"]) == (12, 12, {"64 x 48": 12})
    assert {task: told["labels"] for task, told in train["tasks"].items()} == dict.fromkeys(
        ("segmentation", "depth", "normals", "edges"), 12
    )
    assert train["tasks"]["segmentation"]["classes"] == 40
    low, middle, high = train["tasks"]["depth"]["least_median_most_m"]
    assert 1 <= low < middle < high <= 3
    assert train["tasks"]["normals"]["mean_xyz"][2] > 0.5
    assert 5 < train["tasks"]["edges"]["ones_percent"] < 20
    assert train["tasks"]["segmentation"]["mirrored_photos"][1] == 12
    assert found["faults"] == []
    assert any("y is down" in note for note in found["notes"])


def mirror(folder: Path) -> None:
    for path in folder.iterdir():
        if path.suffix == ".npy":
            np.save(path, np.load(path)[:, ::-1])
        else:
            ImageOps.mirror(Image.open(path)).save(path)


def fill(path: Path, value: int) -> None:
    Image.fromarray(np.full_like(np.asarray(Image.open(path)), value)).save(path)


FAULTS: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "an empty file": ("nyud_arrays", lambda f: (f / "depth/0003.npy").write_bytes(b""), "0003.npy: an empty file"),
    "an empty photo": ("pascal", lambda f: (f / "JPEGImages/2008_000003.jpg").write_bytes(b""), "an empty file"),
    "mirrored classes": ("nyud_images", lambda f: mirror(f / "segmentation"), "train: labels of segmentation are mir"),
    "mirrored arrays": ("nyud_arrays", lambda f: mirror(f / "depth"), "labels of depth are mirrored: in 12"),
    "an unknown class": ("nyud_images", lambda f: fill(f / "segmentation/0002.png", 77), "0002.png: found class 77"),
    "metres, not millimetres": ("nyu", lambda f: fill(f / "train/depth/0001.png", 2), "convert the file to millim"),
    "a wrong size": (
        "nyud_arrays",
        lambda f: np.save(f / "edge/0001.npy", np.zeros((40, 64))),
        "0001.npy: the label is 64 x 40 pixels, its photo 64 x 48",
    ),
    "nothing but no label": (
        "nyud_arrays",
        lambda f: [fill(path, 0) for path in (f / "segmentation").iterdir()],
        "train: no pixel of the 12 labels of segmentation that were read has a label",
    ),
    "a photo in both": (
        "pascal",
        lambda f: shutil.copy(f / "ImageSets/Context/train.txt", f / "ImageSets/Context/val.txt"),
        "12 photos are in train and in val, first ",
    ),
    "no list": ("nyud_arrays", lambda f: (f / "gt_sets/train.txt").unlink(), "train: .*no such list of photos"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_told_and_the_rest_is_still_looked_at(copy, fault: str) -> None:
    name, break_it, message = FAULTS[fault]
    root = copy(name)
    break_it(root)
    report = check(CheckConfig(root, json=True))
    found = json.loads(report.text)
    assert report.failed
    assert set(found["splits"]) == ({"val"} if fault == "no list" else {"train", "val"})
    text = check(CheckConfig(root)).text
    with pytest.raises(AssertionError, match=message):
        raise AssertionError("\n".join(line for line in text.splitlines() if line.startswith("fault: ")))


ODD: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "a missing label": (
        "nyud_arrays",
        lambda f: [(f / f"depth/000{n}.npy").unlink() for n in (2, 4, 5, 7)],
        "train: 4 photos have no label of depth, first 0002.jpg, 0004.jpg, 0005.jpg",
    ),
    "a missing folder": ("pascal", lambda f: shutil.rmtree(f / "sal_distill"), "there are no labels of saliency"),
    "normals without classes": (
        "pascal",
        lambda f: shutil.rmtree(f / "pascal-context"),
        "train: there are no labels of normals, edges",
    ),
    "millimetres": (
        "nyud_arrays",
        lambda f: [np.save(p, np.load(p) * 1000) for p in (f / "depth").iterdir()],
        "train: depth: the files hold millimetres",
    ),
    "a label of nothing": (
        "nyud_images",
        lambda f: fill(f / "segmentation/0002.png", 0),
        "train: 1 labels of segmentation label no pixel, first 0002.png",
    ),
    "another scale": (
        "nyud_arrays",
        lambda f: np.save(f / "depth/0001.npy", np.load(f / "depth/0001.npy")[::2, ::2]),
        "0001.npy: 32 x 24 pixels, its photo 64 x 48; resized on reading",
    ),
}  # fmt: skip


@pytest.mark.parametrize("odd", ODD)
def test_what_is_odd_is_noted_and_no_fault(copy, odd: str) -> None:
    name, change, note = ODD[odd]
    root = copy(name)
    change(root)
    report = check(CheckConfig(root))
    assert f"{note}" in "\n".join(line for line in report.text.splitlines() if line.startswith("note: "))
    assert not report.failed


def test_a_sample_is_read_unless_all_is_asked_for(copy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.data.check._SAMPLE", 4)
    root = copy("nyud_images")
    fill(root / "segmentation/0001.png", 77)
    assert not check(CheckConfig(root)).failed
    assert check(CheckConfig(root, all=True)).failed


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> object:
    monkeypatch.setattr(sys, "argv", ["training", "data", "check", *arguments])
    try:
        main()
    except SystemExit as ended:
        return ended.code
    return 0


def test_the_command_ends_with_0_or_1(
    copy, archives: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "--json", str(archives["pascal"])) == 0
    assert json.loads(capsys.readouterr().out)["layout"] == "pascal"
    root = copy("nyud_arrays")
    (root / "depth/0003.npy").write_bytes(b"")
    assert run(monkeypatch, str(root)) == 1
    assert capsys.readouterr().out.endswith("1 faults\n")


def test_a_folder_of_no_layout_is_one_line_that_shows_the_way(
    archives: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "nowhere: no such folder" in str(run(monkeypatch, str(tmp_path / "nowhere")))
    told = str(run(monkeypatch, str(archives["pascal"].parent)))
    assert "none of the layouts that are known" in told
    assert told.endswith("nyud_arrays has one")


def test_a_mirror_is_not_called_by_chance() -> None:
    assert not surely_mirrored([True] * 9)  # one in 512
    assert surely_mirrored([True] * 10)
    assert not surely_mirrored([True, False] * 50)
    assert not surely_mirrored([])


def test_a_label_without_steps_says_nothing_of_mirrors() -> None:
    image = np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8)
    assert mirror_fits_better(image, "classes", np.zeros((8, 8), np.uint8)) is None
