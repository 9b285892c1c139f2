"""`python -m training data check DIR`: what a folder of photos and labels holds, and what is missing or wrong in it."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from ptsa_serve.tasks import Kind
from training.data import DATASETS
from training.data.evenly import evenly
from training.data.files import read_photo
from training.data.labelled import SETTINGS
from training.data.labels import labelled
from training.data.mirrored import mirror_fits_better, surely_mirrored
from training.data.photoset import PhotoSet
from training.errors import DataError
from training.report import Report

__all__ = ["CheckConfig", "check"]

_SAMPLE = 48  # photos of a split: seconds, and enough for a unit or a mirror that is wrong everywhere
_SHOWN = 20  # faults in the text; the JSON has all

# What only a folder of this layout holds, by data set; the first that is found.
_MARKS: dict[str, tuple[str, ...]] = {
    "labelled": (SETTINGS,),
    "pascal": ("ImageSets/Context/*.txt",),
    "nyud": ("gt_sets/*.txt",),
    "horses": ("figure_ground/*",),
    "nyu": ("train/image", "val/image"),
    "ccp": ("train/*.[jJ][pP]*", "val/*.[jJ][pP]*"),
}


@dataclass(frozen=True)
class CheckConfig:
    """What `python -m training data check` takes.

    Args:
        folder: of a data set in one of the layouts: compact NYU, CCP, Weizmann horses, what `label` wrote, or the
            archives of NYUD-v2 and PASCAL-Context.
        all: read every photo and label, not 48 photos of each split.
        json: print everything as JSON.
    """

    folder: Path
    all: bool = False
    json: bool = False


@dataclass
class _Task:
    """What is found of one task in one split."""

    kind: Kind
    labels: int
    missing: list[str]
    pixels: int = 0
    labelled: int = 0
    empty: list[str] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)
    values: list[float] = field(default_factory=list)
    mirrored: list[bool] = field(default_factory=list)


def check(config: CheckConfig) -> Report:
    """What is there and what is not as it should be; failed where training would stop or learn what is wrong.

    Raises FileNotFoundError for no folder, DataError for one of no known layout.
    """
    name = recognise(config.folder)
    found: dict[str, Any] = {"layout": name, "folder": str(config.folder), "splits": {}, "notes": [], "faults": []}
    photos: dict[Path, str] = {}
    for split in DATASETS[name].splits:
        try:
            data = DATASETS[name](config.folder, split)
        except (OSError, DataError) as error:
            found["faults"].append(f"{split}: {error}")
            continue
        found["splits"][split] = _split(data, split, config, found["notes"], found["faults"])
        paths = {data.photo_path(index): split for index in range(len(data))}
        if twice := sorted(photos.keys() & paths.keys()):
            found["faults"].append(
                f"{len(twice)} photos are in train and in val, first {twice[0]}; take them off one list, or figures on "
                "val are too good"
            )
        photos |= paths
    return Report(json.dumps(found, indent=2) if config.json else _text(found), failed=bool(found["faults"]))


def recognise(folder: Path) -> str:
    """The data set whose layout a folder has. Raises FileNotFoundError, or DataError if it has none."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    for name, marks in _MARKS.items():
        if any(next(folder.glob(mark), None) for mark in marks):
            return name
    below = [path for path in sorted(folder.iterdir()) if path.is_dir()]
    inner = [path for path in below if any(next(path.glob(m), None) for marks in _MARKS.values() for m in marks)]
    hint = f"; {inner[0]} has one" if inner else ""
    known = "; ".join(f"{name}: {' or '.join(marks)}" for name, marks in _MARKS.items())
    raise DataError(f"{folder}: none of the layouts that are known ({known}){hint}")


def _split(data: PhotoSet, split: str, config: CheckConfig, notes: list[str], faults: list[str]) -> dict[str, Any]:
    notes += [f"{split}: {note}" for note in data.notes]
    if absent := [task for task in type(data).records if task not in data.records]:
        notes.append(f"{split}: there are no labels of {', '.join(absent)}")
    tasks = {task: _files(data, task) for task in data.tasks}
    empty = [path for path in _all_files(data) if not path.stat().st_size]
    faults += [f"{path}: an empty file; copy it from the data set again" for path in empty]
    indices = evenly(range(len(data)), len(data) if config.all else _SAMPLE)
    sizes: Counter[str] = Counter()
    for index in tqdm(indices, desc=f"check {split}", unit="photo", disable=None):
        _look(data, index, tasks, sizes, notes, faults)
    for task, facts in tasks.items():
        _judge(split, task, facts, notes, faults)
    return {
        "photos": len(data),
        "read": len(indices),
        "sizes": dict(sizes.most_common()),
        "tasks": {task: _facts(facts, data.records[task].channels) for task, facts in tasks.items()},
    }


def _files(data: PhotoSet, task: str) -> _Task:
    missing = [data.photo_path(i).name for i in range(len(data)) if data.label_path(task, i) is None]
    return _Task(data.records[task].kind, len(data) - len(missing), missing)


def _all_files(data: PhotoSet) -> Iterator[Path]:
    for index in range(len(data)):
        yield data.photo_path(index)
        yield from (path for task in data.tasks if (path := data.label_path(task, index)))


def _look(
    data: PhotoSet, index: int, tasks: dict[str, _Task], sizes: Counter[str], notes: list[str], faults: list[str]
) -> None:
    """Read a photo and its labels, and add up what is in them."""
    paths = [data.photo_path(index), *(path for task in tasks if (path := data.label_path(task, index)))]
    if not all(path.stat().st_size for path in paths):
        return  # told already
    try:
        image = read_photo(data.photo_path(index))
    except (OSError, DataError) as error:
        faults.append(str(error))
        return
    height, width = image.shape[:2]
    sizes[f"{width} x {height}"] += 1
    for task, facts in tasks.items():
        path = data.label_path(task, index)
        if path is None:
            continue
        try:
            label = data.read(task, path, (height, width))
        except (OSError, DataError) as error:
            faults.append(str(error))
            continue
        if not data.any_shape and (size := _stored_size(path)) not in (None, (height, width)):
            notes.append(f"{path}: {size[1]} x {size[0]} pixels, its photo {width} x {height}; resized on reading")
        _add(facts, path, image, label)


def _add(facts: _Task, path: Path, image: NDArray[np.uint8], label: NDArray) -> None:
    known = labelled(facts.kind, label)
    facts.pixels += known.size
    facts.labelled += int(known.sum())
    if not known.any():
        facts.empty.append(path.name)
        return
    match facts.kind:
        case "classes":
            facts.seen.update(str(value) for value in np.unique(label[known]))
        case "metres":
            facts.values += [float(value) for value in np.percentile(label[known], (0, 50, 100))]
        case "unit_vectors":
            facts.values += [float(value) for value in label[known].mean(0)]
        case _:
            facts.values.append(float(label[known].mean()))
    if (vote := mirror_fits_better(image, facts.kind, label)) is not None:
        facts.mirrored.append(vote)


def _judge(split: str, task: str, facts: _Task, notes: list[str], faults: list[str]) -> None:
    if facts.missing:
        names = ", ".join(facts.missing[:3])
        notes.append(f"{split}: {len(facts.missing)} photos have no label of {task}, first {names}")
    if facts.empty and not facts.labelled:
        faults.append(f"{split}: no pixel of the {len(facts.empty)} labels of {task} that were read has a label")
    elif facts.empty:
        names = ", ".join(facts.empty[:3])
        notes.append(f"{split}: {len(facts.empty)} labels of {task} label no pixel, first {names}")
    if surely_mirrored(facts.mirrored):
        faults.append(
            f"{split}: labels of {task} are mirrored: in {sum(facts.mirrored)} of {len(facts.mirrored)} photos the "
            "mirrored label fits the photo's edges better; mirror them, or copy photos and labels again"
        )


def _facts(facts: _Task, channels: int) -> dict[str, Any]:
    """What is told of a task: its files, the share of pixels with a label, and the range of the values."""
    told: dict[str, Any] = {
        "labels": facts.labels,
        "missing": len(facts.missing),
        "labelled_percent": round(100 * facts.labelled / facts.pixels, 1) if facts.pixels else None,
        "mirrored_photos": [sum(facts.mirrored), len(facts.mirrored)],
    }
    values = np.array(facts.values)
    if facts.kind == "classes":
        return told | {"classes": channels, "classes_seen": sorted(map(int, facts.seen))}
    if not len(values):
        return told
    match facts.kind:
        case "metres":
            low, middle, high = values.reshape(-1, 3).T
            span = [low.min(), np.median(middle), high.max()]
            return told | {"least_median_most_m": [round(float(value), 2) for value in span]}
        case "unit_vectors":
            return told | {"mean_xyz": [round(float(value), 2) for value in values.reshape(-1, 3).mean(0)]}
        case _:
            return told | {"ones_percent": round(float(100 * values.mean()), 2)}


def _stored_size(path: Path) -> tuple[int, int] | None:
    """(H, W) that a label file's header tells; None for formats whose header does not."""
    match path.suffix.lower():
        case ".npy":
            return np.load(path, mmap_mode="r", allow_pickle=False).shape[:2]
        case ".mat":
            return None
        case _:
            with Image.open(path) as image:
                return image.height, image.width


def _text(found: dict[str, Any]) -> str:
    lines = [f"{found['folder']}: {found['layout']}"]
    for split, facts in found["splits"].items():
        sizes = ", ".join(f"{size} ({count})" for size, count in list(facts["sizes"].items())[:4])
        lines.append(f"{split}: {facts['photos']} photos; of {facts['read']} that were read: {sizes or 'none'}")
        lines += [_line(task, told) for task, told in facts["tasks"].items()]
    lines += [f"note: {note}" for note in _short(found["notes"])]
    lines += [f"fault: {fault}" for fault in _short(found["faults"])]
    return "\n".join([*lines, f"{len(found['faults'])} faults" if found["faults"] else "no faults"])


def _line(task: str, told: dict[str, Any]) -> str:
    words = [f"  {task:<14}{told['labels']} labels"]
    if told["labelled_percent"] is not None:
        words.append(f"{told['labelled_percent']} % of pixels labelled")
    if "classes" in told:
        words.append(f"{len(told['classes_seen'])} of {told['classes']} classes seen")
    if "least_median_most_m" in told:
        words.append("{} to {} m, median {}".format(*(told["least_median_most_m"][i] for i in (0, 2, 1))))
    if "mean_xyz" in told:
        words.append("mean ({}, {}, {})".format(*told["mean_xyz"]))
    if "ones_percent" in told:
        words.append(f"{told['ones_percent']} % ones")
    return ", ".join(words)


def _short(lines: list[str]) -> list[str]:
    rest = len(lines) - _SHOWN
    return [*lines[:_SHOWN], f"and {rest} more; --json prints all"] if rest > 0 else lines
