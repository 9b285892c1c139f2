"""Labels of teachers for folders of photos: a teacher that computes them from the photo shows what becomes of them."""

import io
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.__main__ import main
from training.data.check import CheckConfig, check
from training.data.labelled import Labelled
from training.errors import ConfigError, DataError, ResumeError
from training.fit import FitConfig, fit
from training.label import LabelConfig, label
from training.labelling import TEACHERS
from training.labelling.base import Guess, Guesses, TeacherKind

GRID = (12, 16)
SEEN: list[str] = []  # sizes of the photos that the teacher was shown
TASKS = ("segmentation", "depth", "normals", "saliency")


class Painter:
    """Reads labels off colours: red says the class, green how sure that is and what is salient, blue how far it is.

    What is very blue is not familiar to it.
    """

    def __init__(self, path: Path) -> None:
        self._nearest = float(path.read_text())

    def __call__(self, photo: np.ndarray) -> Guesses:
        SEEN.append(str(photo.shape))
        small = np.asarray(Image.fromarray(photo).resize(GRID[::-1], Image.Resampling.BOX)).astype(np.float32)
        red, green, blue = np.moveaxis(small / 255, -1, 0)
        classes = np.eye(39, dtype=np.float32)[(red * 38).astype(int)]
        normals = np.stack([red - 0.5, green - 0.5, np.ones_like(red)], -1)
        maps = {
            "segmentation": Guess(classes, green),
            "depth": Guess(self._nearest + 3 * blue),
            "normals": Guess(normals / np.linalg.norm(normals, axis=-1, keepdims=True)),
            "saliency": Guess(green, np.abs(2 * green - 1)),
        }
        return Guesses(maps, 1 - float(blue.mean()))


@pytest.fixture
def painter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder of a teacher called `painter`."""
    kind = TeacherKind(TASKS, ("nearest.txt",), Painter, {})
    monkeypatch.setitem(TEACHERS, "painter", kind)  # type: ignore[arg-type]
    SEEN.clear()
    (tmp_path / "teachers").mkdir()
    (tmp_path / "teachers/nearest.txt").write_text("1")
    return tmp_path / "teachers"


def blocks(seed: int, size: tuple[int, int] = (48, 64), blue: int = 120) -> np.ndarray:
    """A photo of smooth colours, (H, W, 3)."""
    rng = np.random.default_rng(seed)
    colours = rng.integers(0, 256, (3, 4, 3)).astype(np.uint8)
    colours[..., 2] = blue
    return np.asarray(Image.fromarray(colours).resize(size[::-1], Image.Resampling.BICUBIC))


def put(path: Path, pixels: np.ndarray, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **({"quality": 95} if path.suffix == ".jpg" else {}), **options)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Six photos in two folders, some of one name."""
    for number in range(6):
        suffix = "png" if number == 4 else "jpg"
        put(tmp_path / f"photos/{'ab'[number % 2]}/{number // 2:04}.{suffix}", blocks(number))
    return tmp_path / "photos"


@pytest.fixture
def config(painter: Path, photos: Path, tmp_path: Path) -> LabelConfig:
    return LabelConfig([str(photos)], [f"painter={painter}"], tmp_path / "out", workers=0)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_labels_are_the_teachers_where_it_is_sure(config: LabelConfig) -> None:
    found = label(config)
    data = Labelled(config.out, "train")
    assert data.tasks == TASKS
    assert [found["tasks"][task]["labels"] for task in TASKS] == [6] * 4
    known = []
    for index in range(len(data)):
        photo = data[index]
        red, green, blue = np.moveaxis(photo.image.astype(np.float32) / 255, -1, 0)
        classes, salient = photo.labels["segmentation"], photo.labels["saliency"]
        # The teacher's grid is coarse: well beyond a threshold it must be right, at it either may be.
        assert (classes[green < 0.35] == 255).mean() > 0.98
        assert (classes[green > 0.65] != 255).mean() > 0.98
        sure = classes != 255
        assert np.median(np.abs(classes[sure] - red[sure] * 38)) < 2
        assert (salient[green > 0.9] == 1).mean() > 0.98
        assert (salient[green < 0.1] == 0).mean() > 0.98
        assert (salient[np.abs(green - 0.5) < 0.1] == 255).mean() > 0.98
        assert np.abs(photo.labels["depth"] - (1 + 3 * blue)).mean() < 0.02
        normals = np.stack([red - 0.5, green - 0.5, np.ones_like(red)], -1)
        normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
        assert (normals * photo.labels["normals"]).sum(-1).mean() > 0.995
        known.append(sure.mean())
    ignored = found["tasks"]["segmentation"]["ignored_percent"]
    assert ignored == pytest.approx(100 * (1 - np.mean(known)), abs=0.1)
    assert 5 < ignored < 95
    assert found["tasks"]["depth"]["mean_confidence"] is None
    assert json.loads((config.out / "summary.json").read_text()) == found
    with Image.open(config.out / "sheet.jpg") as sheet:
        assert sheet.width > 4 * sheet.height / 6


def test_what_a_teacher_does_not_know_gets_no_labels(config: LabelConfig, photos: Path) -> None:
    put(photos / "sea.jpg", blocks(9, blue=250))
    found = label(config)
    assert (found["photos"], found["without_labels"]) == (7, 1)
    assert not [name for name in files(config.out / "train") if "sea" in name]
    shown = len(SEEN)
    assert label(config) == found
    assert len(SEEN) == shown == 7  # it is done, too


@pytest.mark.parametrize("workers", [0, 1])
def test_a_killed_run_resumes_to_the_same_files(
    config: LabelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    label(config)
    broken, paint = replace(config, out=tmp_path / "broken"), Painter.__call__
    SEEN.clear()

    def killed(teacher: Painter, photo: np.ndarray) -> Guesses:
        if len(SEEN) == 3:
            raise KeyboardInterrupt
        return paint(teacher, photo)

    with monkeypatch.context() as patch:
        patch.setattr(Painter, "__call__", killed)
        with pytest.raises(KeyboardInterrupt):
            label(broken)
    with (broken.out / "labels.jsonl").open("ab") as journal:
        journal.write(b'{"name": "half a li')
    label(replace(broken, workers=workers))
    assert len(SEEN) == (6 if workers == 0 else 3)
    assert files(broken.out) == files(config.out)


def test_a_photo_counts_as_done_only_with_all_its_files(config: LabelConfig) -> None:
    label(config)
    whole = files(config.out / "train")
    names = sorted(path.stem for path in (config.out / "train/image").iterdir())
    (config.out / f"train/depth/{names[0]}.png").unlink()
    (config.out / f"train/image/{names[3]}.jpg").unlink()
    SEEN.clear()
    label(config)
    assert len(SEEN) == 2
    assert files(config.out / "train") == whole


def test_damaged_photos_are_named_and_left_out(
    config: LabelConfig, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, content in enumerate((b"", b"no photo", (photos / "a/0001.jpg").read_bytes()[:900])):
        (photos / f"broken{number}.jpg").write_bytes(content)
    found = label(config)
    assert found["photos"] == 6
    assert [str(photos / f"broken{n}.jpg") in text for n, text in enumerate(found["damaged"])] == [True] * 3
    errors = capsys.readouterr().err
    assert all(errors.count(f"broken{number}.jpg: not a usable photo") == 1 for number in range(3))
    assert "3 photos could not be read and have no labels, first photos/broken0.jpg" in errors
    put(photos / "broken1.jpg", blocks(8))
    assert (label(config)["photos"], len(label(config)["damaged"])) == (7, 2)


def test_other_settings_or_teachers_are_refused_by_name(config: LabelConfig, painter: Path, tmp_path: Path) -> None:
    label(config)
    whole = files(config.out)
    with pytest.raises(ResumeError, match=r"confident was 0\.5, now 0\.7"):
        label(replace(config, confident=0.7))
    (painter / "nearest.txt").write_text("2")
    with pytest.raises(ResumeError, match=r"teachers\.painter\.nearest\.txt was [0-9a-f]{12}\.\.\., now"):
        label(config)
    assert files(config.out) == whole
    (tmp_path / "mine/train/image").mkdir(parents=True)
    with pytest.raises(ResumeError, match="a data set that was not made here"):
        label(replace(config, out=tmp_path / "mine"))
    (config.out / "labelled.json").write_text("[1]")
    with pytest.raises(ResumeError, match=r"labelled\.json is damaged"):
        label(config)


def test_other_photos_may_have_other_teachers(
    config: LabelConfig, painter: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TEACHERS, "carver", TEACHERS["painter"])  # type: ignore[misc]
    carver = painter.parent / "carver"
    carver.mkdir()
    (carver / "nearest.txt").write_text("3")
    label(replace(config, photos=[str(photos / "a")]))
    others = replace(config, photos=[str(photos / "b")], teachers=[f"carver={carver}"])
    assert label(others)["photos"] == 6
    assert list(json.loads((config.out / "labelled.json").read_bytes())["teachers"]) == ["painter", "carver"]
    data = Labelled(config.out, "train")
    nearest = [data[index].labels["depth"].min() for index in range(len(data))]
    assert sum(depth > 3 for depth in nearest) == 3
    (painter / "nearest.txt").write_text("2")
    label(others)
    with pytest.raises(ResumeError, match=r"teachers\.painter\.nearest\.txt was"):
        label(config)


def test_a_few_photos_first_and_then_all(config: LabelConfig) -> None:
    assert label(replace(config, limit=3))["photos"] == 3
    few = files(config.out / "train")
    assert label(config)["photos"] == 6
    assert files(config.out / "train").items() > few.items()
    assert len(SEEN) == 6


def test_names_are_a_photos_own(config: LabelConfig, photos: Path, tmp_path: Path) -> None:
    put(photos / "a-0001.jpg", blocks(1))
    put(photos / "a/0001.png", blocks(2))
    put(photos / "a/Größe \udcff.jpg", blocks(3))
    found = label(config)
    assert found["photos"] == 9
    elsewhere = tmp_path / "elsewhere/photos"
    elsewhere.parent.mkdir()
    photos.rename(elsewhere)
    put(elsewhere / "0000.jpg", blocks(4))
    SEEN.clear()
    assert label(replace(config, photos=[str(elsewhere)]))["photos"] == 10
    assert len(SEEN) == 1
    put(tmp_path / "other/photos/a/0001.jpg", blocks(5))
    with pytest.raises(DataError, match=r"other/photos/a/0001\.jpg would have one name.*one folder above both"):
        label(replace(config, photos=[str(elsewhere), str(tmp_path / "other/photos")]))


def test_large_photos_are_kept_smaller_and_small_ones_as_they_are(config: LabelConfig, photos: Path) -> None:
    put(photos / "large.jpg", blocks(1, (300, 400)))
    turned = Image.Exif()
    turned[0x0112] = 6
    put(photos / "turned.jpg", blocks(2, (60, 90)), exif=turned)
    label(replace(config, side=200))
    stored = {path.stem.rsplit("-", 1)[0]: path for path in (config.out / "train/image").iterdir()}
    assert stored["photos-a-0001"].read_bytes() == (photos / "a/0001.jpg").read_bytes()
    sizes = {}
    for name in ("photos-large", "photos-turned"):
        for path in (stored[name], config.out / f"train/depth/{stored[name].stem}.png"):
            sizes[name, path.parent.name] = Image.open(io.BytesIO(path.read_bytes())).size
    assert sizes == {
        ("photos-large", "image"): (200, 150),
        ("photos-large", "depth"): (100, 75),
        ("photos-turned", "image"): (60, 90),
        ("photos-turned", "depth"): (60, 90),
    }


def test_what_is_wrong_is_said_before_anything_is_made(config: LabelConfig, painter: Path, tmp_path: Path) -> None:
    (tmp_path / "teachers/one").mkdir()
    for change, error, message in (
        ({"teachers": ["painter"]}, ConfigError, "a teacher is NAME=FOLDER"),
        ({"teachers": [f"monet={painter}"]}, ConfigError, "known are u2net, ade20k, room, painter"),
        ({"teachers": [f"painter={tmp_path / 'none'}"]}, FileNotFoundError, "teacher painter: no file nearest.txt in"),
        ({"teachers": [f"painter={painter}"] * 2}, ConfigError, "painter and painter both label segmentation"),
        ({"photos": [str(tmp_path / "none")]}, FileNotFoundError, "none: no such folder of photos"),
    ):
        with pytest.raises(error, match=message):
            label(replace(config, **change))
        assert not config.out.exists()
    with pytest.raises(ConfigError, match=r"lies in .*photos, whose photos are to be labelled"):
        replace(config, out=Path(config.photos[0]) / "labels")
    with pytest.raises(ConfigError, match="--confident is 2; it must be from 0 to 1; --side is 10"):
        replace(config, confident=2, side=10)


def test_a_package_that_is_missing_is_told_with_its_command(
    config: LabelConfig, painter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = replace(TEACHERS["painter"], modules={"no_such_module": "no-such-package"})
    monkeypatch.setitem(TEACHERS, "painter", kind)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="needs no_such_module; install it with `pip install no-such-package`"):
        label(config)


def test_the_first_folder_that_has_a_file_counts(config: LabelConfig, painter: Path, tmp_path: Path) -> None:
    (tmp_path / "better/below").mkdir(parents=True)
    (tmp_path / "better/below/nearest.txt").write_text("3")
    label(replace(config, teachers=[f"painter={tmp_path / 'better'}:{painter}"]))
    assert Labelled(config.out, "train")[0].labels["depth"].min() > 3
    (tmp_path / "better/twice").mkdir()
    (tmp_path / "better/twice/nearest.txt").write_text("3")
    with pytest.raises(ConfigError, match=r"are both called nearest\.txt"):
        label(replace(config, teachers=[f"painter={tmp_path / 'better'}"]))


def test_training_and_check_read_what_was_written(
    config: LabelConfig, photos: Path, data: dict[str, Path], tmp_path: Path
) -> None:
    put(photos / "upright.jpg", blocks(1, (80, 50)))
    put(photos / "square.jpg", blocks(2, (50, 50)))
    label(config)
    report = check(CheckConfig(config.out))
    assert report.text.startswith(f"{config.out}: labelled\ntrain: 8 photos")
    assert report.text.endswith("\nno faults")
    run = FitConfig(
        {"labelled": config.out, "nyu": data["nyu"]},
        tmp_path / "run",
        method="multi_task",
        backbone="swin_test",
        width=8,
        scale=0.17,
        batches={"labelled": 4, "nyu": 2},
        steps=2,
        warmup=1,
        hold_out=0.2,
        workers=0,
        precision="32-true",
    )
    assert fit(run).exists()
    losses = json.loads((run.out / "metrics.json").read_text())
    assert "labelled" in json.dumps(losses)


def test_the_command_prints_the_summary(
    config: LabelConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command: Callable[[str], list[str]] = lambda teachers: [  # noqa: E731
        *("training", "label", "--photos", f"[{config.photos[0]}]", "--teachers", teachers, "--out", str(config.out)),
        *("--workers", "1", "--limit", "2"),
    ]
    monkeypatch.setattr(sys, "argv", command(f"[{config.teachers[0]}]"))
    main()
    assert json.loads(capsys.readouterr().out)["photos"] == 2
    monkeypatch.setattr(sys, "argv", command("[monet=x]"))
    with pytest.raises(SystemExit, match="error: --teachers has 'monet=x'"):
        main()
