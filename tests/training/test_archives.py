"""The standard archives as they are about: every layout read to the same labels, and refused by name where wrong."""

import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

from training.data import DATASETS
from training.data.labels import labelled
from training.data.opening import check_labels, open_set
from training.data.pascal_tables import PARTS, WITH_NORMALS
from training.scoring.boundaries import class_boundaries

SETS = {"nyud_arrays": "nyud", "nyud_images": "nyud", "pascal": "pascal"}


@pytest.fixture
def copy(archives: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """`copy(name)`: a copy of an archive, to be damaged."""
    return lambda name: shutil.copytree(archives[name], tmp_path / name)


@pytest.mark.parametrize("name", ["nyud_arrays", "nyud_images"])
def test_both_archives_of_nyud_give_the_same_labels(archives, scene, name: str) -> None:
    data = DATASETS["nyud"](archives[name], "train")
    assert data.tasks == ("segmentation", "depth", "normals", "edges")
    assert (len(data), data.records["segmentation"].channels) == (12, 40)
    for index in (0, 7):
        labels, shown = data[index].labels, scene(index)
        assert (labels["segmentation"][:4, :4] == 255).all()
        assert np.array_equal(labels["segmentation"][4:], shown["classes"][4:])
        assert np.array_equal(labels["depth"], shown["depth"])
        np.testing.assert_allclose(labels["normals"], shown["normals"], atol=0.01)
        assert np.array_equal(labels["edges"], shown["edges"])


def test_what_was_found_out_is_said(archives, capsys: pytest.CaptureFixture[str]) -> None:
    open_set("nyud", archives["nyud_arrays"], "val")
    said = capsys.readouterr().err
    assert "nyud/val: 3 photos; with labels of segmentation 3, depth 3, normals 3, edges 3\n" in said
    assert "depth: the files hold metres\n" in said
    assert "y is down, turned up on reading (3 photos with a floor tell); z points towards the camera\n" in said


def each(folder: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    for path in folder.glob("*.npy"):
        np.save(path, change(np.load(path)))


def test_normals_that_point_away_are_turned_around(copy, scene) -> None:
    root = copy("nyud_arrays")
    each(root / "normals", lambda normals: normals * np.array([1, 1, -1], np.float32))
    data = DATASETS["nyud"](root, "train")
    np.testing.assert_allclose(data[0].labels["normals"], scene(0)["normals"], atol=1e-6)
    assert "z points away from the camera, turned around on reading" in data.notes[1]


def test_without_a_floor_y_counts_as_up_and_that_is_said(copy) -> None:
    root = copy("nyud_images")
    shutil.rmtree(root / "segmentation")
    data = DATASETS["nyud"](root, "train")
    assert data.tasks == ("depth", "normals", "edges")
    assert data[0].labels["normals"][44, 5, 1] > 0.9
    shutil.rmtree(root / "normals")
    assert DATASETS["nyud"](root, "train").tasks == ("depth", "edges")


def test_millimetres_are_found_and_become_metres(copy, scene) -> None:
    root = copy("nyud_arrays")
    each(root / "depth", lambda depth: (depth * 1000).astype(np.uint16))
    data = DATASETS["nyud"](root, "train")
    np.testing.assert_allclose(data[3].labels["depth"], scene(3)["depth"], atol=0.001)
    assert data.notes[0] == "depth: the files hold millimetres"


def test_metres_among_millimetres_are_refused(copy, scene) -> None:
    root = copy("nyud_arrays")
    np.save(root / "depth/0005.npy", scene(5)["depth"] * 1000)
    with pytest.raises(
        ValueError, match=r"0005\.npy: its depths are millimetres, those of 0000\.npy are metres; a set"
    ):
        check_labels(DATASETS["nyud"](root, "train"))


def test_depth_that_is_no_number_is_no_label(copy, scene) -> None:
    root = copy("nyud_arrays")
    depth = scene(0)["depth"]
    depth[0, :3] = np.nan, np.inf, 0
    np.save(root / "depth/0000.npy", depth[..., None])
    label = DATASETS["nyud"](root, "train")[0].labels["depth"]
    assert label[0, :3].tolist() == [0, 0, 0]
    assert labelled("metres", label).sum() == label.size - 3


@pytest.mark.parametrize("name", SETS)
def test_a_photo_without_a_label_file_has_no_label(copy, name: str) -> None:
    root = copy(name)
    whole = DATASETS[SETS[name]](root, "train")
    for task in whole.tasks:
        (path := whole.label_path(task, 2)) and path.unlink(missing_ok=True)
    if name == "pascal":
        (root / "semseg/pascal-context/2008_000002.png").unlink()
    data = DATASETS[SETS[name]](root, "train")
    labels = data[2]
    assert not any(labelled(labels.kinds[task], label).any() for task, label in labels.labels.items())
    assert data.tasks == whole.tasks


@pytest.mark.parametrize("name", SETS)
def test_nothing_is_written_into_a_data_set(archives, name: str) -> None:
    def state() -> dict[Path, tuple[int, int]]:
        return {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in sorted(archives[name].rglob("*"))}

    before = state()
    check_labels(DATASETS[SETS[name]](archives[name], "train"))
    assert state() == before


def test_labels_at_half_the_size_are_fitted_and_turned_ones_refused(copy, scene) -> None:
    root = copy("nyud_arrays")
    np.save(root / "depth/0000.npy", scene(0)["depth"][::2, ::2])
    edges = scene(0)["edges"]
    np.save(root / "edge/0001.npy", edges.T)
    data = DATASETS["nyud"](root, "train")
    assert np.array_equal(data[0].labels["depth"][::2, ::2], scene(0)["depth"][::2, ::2])
    with pytest.raises(ValueError, match=r"0001\.npy: the label is 48 x 64 pixels, its photo 64 x 48, another shape"):
        data[1]


def test_pickled_objects_are_never_opened(copy, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self):
            return (tmp_path.joinpath("gone off").touch, ())

    root = copy("nyud_arrays")
    np.save(root / "depth/0001.npy", np.array([[Bomb()]], object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"depth/0001\.npy: no array of numbers"):
        DATASETS["nyud"](root, "train")[1]
    assert not (tmp_path / "gone off").exists()


def write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


DAMAGES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "a listed photo": ("nyud_arrays", lambda f: (f / "images/0003.jpg").unlink(), "1 of the 12 photos .* first 0003"),
    "no list": ("pascal", lambda f: (f / "ImageSets/Context/train.txt").unlink(), "no such list of photos; .*val.txt"),
    "an empty list": ("nyud_images", lambda f: write(f / "gt_sets/train.txt", b"\n"), "it names no photo"),
    "a list in no text": ("nyud_images", lambda f: write(f / "gt_sets/train.txt", b"\xff\xfe0"), "no text"),
    "no labels": (
        "nyud_arrays",
        lambda f: [shutil.rmtree(f / folder) for folder in ("depth", "edge", "normals", "segmentation")],
        "photos without any labels; expected segmentation, depth, normals, edges",
    ),
    "an unknown class": (
        "nyud_arrays",
        lambda f: Image.fromarray(np.full((48, 64), 41, np.uint8)).save(f / "segmentation/0001.png"),
        r"0001\.png: found class 41; allowed are 1 to 40",
    ),
    "a cut array": (
        "nyud_arrays",
        lambda f: write(f / "depth/0001.npy", (f / "depth/0001.npy").read_bytes()[:500]),
        r"depth/0001\.npy: no array of numbers",
    ),
    "depth of another type": (
        "nyud_arrays",
        lambda f: [p.rename(p.with_suffix(".mat")) for p in (f / "depth").iterdir()],
        r"depth: no file in it ends in \.npy; put labels there that do, or remove",
    ),
    "an empty folder": (
        "pascal",
        lambda f: [p.unlink() for p in (f / "sal_distill").iterdir()],
        r"sal_distill: no file in it ends in \.png",
    ),
    "negative depth": (
        "nyud_arrays",
        lambda f: np.save(f / "depth/0001.npy", -np.ones((48, 64))),
        r"0001\.npy: found the depth -1; allowed are numbers above 0",
    ),
    "an array of another form": (
        "nyud_arrays",
        lambda f: np.save(f / "normals/0001.npy", np.ones((48, 64))),
        r"found float64 \(48, 64\); a label is numbers H x W x 3",
    ),
    "a cut MATLAB file": (
        "pascal",
        lambda f: write(f / "human_parts/2008_000001.mat", (f / "human_parts/2008_000001.mat").read_bytes()[:300]),
        r"2008_000001\.mat: the file is damaged",
    ),
    "MATLAB 7.3": (
        "pascal",
        lambda f: write(f / "human_parts/2008_000001.mat", b"MATLAB 7.3".ljust(124) + struct.pack("<H", 0x200) + b"IM"),
        r"a MATLAB file of version 7\.3; save it again with -v7",
    ),
    "another variable": (
        "pascal",
        lambda f: scipy.io.savemat(f / "pascal-context/trainval/2008_000001.mat", {"Map": np.zeros((48, 64))}),
        "it has no 'LabelMap'",
    ),
    "another struct": (
        "pascal",
        lambda f: scipy.io.savemat(f / "human_parts/2008_000001.mat", {"anno": {"things": 1}}),
        "no objects with parts in it",
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_copy_is_refused_by_name(copy, damage: str) -> None:
    name, break_it, message = DAMAGES[damage]
    root = copy(name)
    break_it(root)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        check_labels(DATASETS[SETS[name]](root, "train"))


def test_pascal_takes_vocs_classes_before_the_others(archives, scene) -> None:
    data = DATASETS["pascal"](archives["pascal"], "train")
    assert data.tasks == ("segmentation", "human_parts", "saliency", "normals", "edges")
    assert np.array_equal(data[0].labels["segmentation"], scene(0)["classes"] % 21)
    assert not data[1].labels["segmentation"].any()
    assert data.records["segmentation"].classes[:2] == ("background", "aeroplane")


def test_parts_of_people_are_merged_and_photos_without_any_have_no_label(archives) -> None:
    data = DATASETS["pascal"](archives["pascal"], "train")
    parts = data[3].labels["human_parts"]
    assert (parts[4, 4], parts[12, 4], parts[20, 4], parts[30, 30]) == (1, 1, 6, 0)
    assert (data[4].labels["human_parts"] == 255).all()
    assert {name: PARTS[name] for name in ("neck", "ruarm", "lhand", "luleg")} == {
        "neck": 2,
        "ruarm": 3,
        "lhand": 4,
        "luleg": 5,
    }


def test_a_part_nobody_knows_is_refused(copy) -> None:
    root = copy("pascal")
    part = {"part_name": "tail", "mask": np.ones((48, 64), np.uint8)}
    person = {"class": "person", "class_ind": 15, "mask": part["mask"], "parts": part}
    scipy.io.savemat(root / "human_parts/2008_000000.mat", {"anno": {"imname": "x", "objects": person}})
    with pytest.raises(ValueError, match=r"2008_000000\.mat: found part 'tail' .* known are hair, head"):
        DATASETS["pascal"](root, "train")[0]


def test_normals_of_pascal_count_where_nyu_has_the_class(archives, scene) -> None:
    labels, shown = DATASETS["pascal"](archives["pascal"], "train")[0].labels, scene(0)
    known = labelled("unit_vectors", labels["normals"])
    assert np.array_equal(known, shown["classes"] <= 20)
    np.testing.assert_allclose(labels["normals"][known], shown["normals"][known], atol=0.01)
    assert len(WITH_NORMALS) == len(set(WITH_NORMALS)) == 170
    assert {158, 427, 440} < set(WITH_NORMALS)  # floor, tvmonitor, wall


def test_saliency_and_edges_of_pascal(archives, scene) -> None:
    labels, shown = DATASETS["pascal"](archives["pascal"], "train")[0].labels, scene(0)
    assert np.array_equal(labels["saliency"], shown["classes"] > 20)
    where = np.where(shown["classes"] == 1, 2, shown["classes"] > 20)
    assert np.array_equal(labels["edges"], class_boundaries(where))
