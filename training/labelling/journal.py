"""What has been labelled so far: a line of JSON a photo, written when all its files are there."""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ptsa_serve.files import replace_file

__all__ = ["Journal", "Record", "summary"]

_FILE = "labels.jsonl"


@dataclass(frozen=True)
class Record:
    """One photo. source: where it came from. familiar: to each teacher, 0...1. bytes: of its files, photo and labels.

    tasks: the labels that it has, each with the mean `confidence` (None: the teacher has none) and the share of pixels
    that are `ignored`. A photo that no teacher could label has none, and no files. fault: why it could not be read.
    """

    name: str
    source: str
    familiar: Mapping[str, float] = field(default_factory=dict)
    tasks: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    bytes: int = 0
    fault: str = ""


class Journal:
    """The lines of a folder `train` of labels. Of a line that a kill cut off, and all that follow, nothing is known."""

    def __init__(self, out: Path, train: Path) -> None:
        self._path = out / _FILE
        there = {folder.name: {path.stem for path in folder.iterdir()} for folder in train.glob("*") if folder.is_dir()}
        self.records = {
            record.name: record
            for record in _read(self._path)
            if all(record.name in there.get(task, ()) for task in (*record.tasks, *(["image"] if record.tasks else [])))
        }
        replace_file(self._path, b"".join(map(_line, self.records.values())))

    def add(self, record: Record) -> None:
        """Note that all files of a photo are there."""
        self.records[record.name] = record
        self._file.write(_line(record))
        self._file.flush()

    def __enter__(self) -> Self:
        self._file = self._path.open("ab")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.fsync(self._file.fileno())
        self._file.close()


def summary(records: Iterable[Record], faults: Iterable[Record]) -> dict[str, Any]:
    """All that there is, in numbers: photos, labels of each task with their mean confidence, and what was damaged."""
    records = list(records)
    labelled = [record for record in records if record.tasks]
    tasks = dict.fromkeys(task for record in labelled for task in record.tasks)
    return {
        "photos": len(records),
        "without_labels": len(records) - len(labelled),
        "bytes_a_photo": round(_mean([record.bytes for record in labelled]) or 0),
        "tasks": {task: _of_task([r.tasks[task] for r in labelled if task in r.tasks]) for task in tasks},
        "damaged": [record.fault for record in faults],
    }


def _of_task(labels: list[Mapping[str, float | None]]) -> dict[str, Any]:
    confidence = _mean([value for label in labels if (value := label["confidence"]) is not None])
    ignored = _mean([label["ignored"] or 0.0 for label in labels]) or 0.0
    return {
        "labels": len(labels),
        "mean_confidence": None if confidence is None else round(confidence, 3),
        "ignored_percent": round(100 * ignored, 1),
    }


def _mean(values: list[Any]) -> float | None:
    return sum(values) / len(values) if values else None


def _line(record: Record) -> bytes:
    return json.dumps(asdict(record)).encode() + b"\n"


def _read(path: Path) -> list[Record]:
    records = []
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            records.append(Record(**json.loads(line)))
        except (ValueError, TypeError):
            break
    return records
