"""Write the labels of pre-trained teachers for folders of photos that have none, as a data set to train on."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.data.evenly import evenly
from training.data.labelled import SETTINGS, Labelled
from training.data.loading import load
from training.errors import ResumeError
from training.labelling.finding import Found, find_teachers
from training.labelling.journal import Journal, Record, summary
from training.labelling.photos import Job, find_jobs
from training.labelling.sheet import sheet
from training.labelling.work import Rules, Work
from training.network.checkpoint import write_whole
from training.options import number_faults, refuse
from training.running.progress import Progress
from training.running.resume import announce, note, settle

__all__ = ["LabelConfig", "label"]

SHEET = "sheet.jpg"
SUMMARY = "summary.json"
_ROWS = 12  # of the sheet
_LEAST_SIDE = 128
_AHEAD = 2  # photos of each process that wait to be noted


@dataclass(frozen=True)
class LabelConfig:
    """What `python -m training label` takes. Raises ConfigError that names every fault at once.

    Args:
        photos: folders of photos, searched recursively.
        teachers: each NAME=FOLDER, where its files are, or right below: u2net (saliency of any photo: u2netp.onnx),
            ade20k (segmentation of rooms: deeplabv3_mnv2_ade20k150_logits.tflite, mosaic_r3_logits_uint8.tflite), room
            (segmentation, depth, normals: those two, dinov2_vits14_int8.safetensors, head.safetensors). A file that
            lies elsewhere: NAME=FIRST:SECOND, and the first folder that has it counts. E.g. '[u2net=weights/teachers,
            room=weights/teachers]'.
        out: folder of the data set: train/image, train/TASK, sheet.jpg to look at, summary.json; `fit --data
            '{labelled: OUT}'` trains on it. A folder that holds labels is added to, and photos that are done are not
            done again; side, confident and familiar must then be the same, and a teacher's files if it was there: rooms
            may have other teachers than the rest, in a run of their own.
        side: photos are kept at most so long, in pixels; their labels at half of that.
        confident: pixels have no label where the teacher's confidence is less: of a class its probability, of saliency
            2 |p - 1/2|; depth and normals have none.
        familiar: photos that are less familiar to a teacher have no label of it. To room and ade20k that is the share
            of walls, floor, ceiling and furniture, times how sure they are on average; to u2net, how salient what is
            most salient is.
        limit: label at most so many photos, evenly spread; 0 = all. Look at those, then run again without.
        workers: processes that label, with one thread each; 0 = this one, with as many as its libraries like.
    """

    photos: list[str]
    teachers: list[str]
    out: Path
    side: int = 512
    confident: float = 0.5
    familiar: float = 0.45
    limit: int = 0
    workers: int = 1

    def __post_init__(self) -> None:
        faults = number_faults(vars(self))
        faults += [f"--{name} names none; name at least one" for name in ("photos", "teachers") if not vars(self)[name]]
        faults += [
            f"--out {self.out} lies in {folder}, whose photos are to be labelled, and those written there would be "
            "labelled next time; name a folder elsewhere"
            for folder in self.photos
            if self.out.resolve().is_relative_to(Path(folder).resolve())
        ]
        if self.side < _LEAST_SIDE:
            faults.append(f"--side is {self.side}; it must be at least {_LEAST_SIDE}")
        refuse(faults)


def label(config: LabelConfig) -> dict[str, Any]:
    """Label all photos, or those that are not labelled yet; returns what `summary.json` holds.

    A photo that cannot be read is told of and left out. A run that is killed goes on where it was; its files are those
    of an unbroken run. Raises TrainingError for settings, teachers, photos or a folder that cannot be used, OSError for
    files that cannot be read or written.
    """
    teachers = find_teachers(config.teachers)
    jobs = find_jobs(map(Path, config.photos))
    jobs = evenly(jobs, config.limit or len(jobs))
    _claim(config, teachers)
    records, faults = _label(config, teachers, jobs)
    found = summary(sorted(records, key=lambda record: record.source), faults)
    if found["tasks"]:
        write_whole(config.out / SHEET, sheet(Labelled(config.out, "train"), _ROWS))
    write_whole(config.out / SUMMARY, json.dumps(found, indent=2).encode() + b"\n")
    if faults:
        note(f"{len(faults)} photos could not be read and have no labels, first {faults[0].source}")
    return found


def _label(config: LabelConfig, teachers: list[Found], jobs: list[Job]) -> tuple[list[Record], list[Record]]:
    """Label those of `jobs` that are not done; returns the records of all photos in the folder, and of damaged ones."""
    train, faults = config.out / "train", []
    journal = Journal(config.out, train)
    todo = [job for job in jobs if job.name not in journal.records]
    if len(todo) < len(jobs):
        note(f"{config.out}: {len(jobs) - len(todo)} of {len(jobs)} photos are done")
    work = Work(todo, teachers, train, Rules(config.side, config.confident, config.familiar))
    ahead = _AHEAD if config.workers else None
    with journal, Progress("label", len(todo), unit="photo") as progress:
        records = load(work, batch_size=None, num_workers=config.workers, prefetch_factor=ahead)
        for number, record in enumerate(records, 1):
            if record.fault:
                faults.append(record)
                progress.say(record.fault)
            else:
                journal.add(record)
            progress.update(number)
    return list(journal.records.values()), faults


def _claim(config: LabelConfig, teachers: list[Found]) -> None:
    """Make the folder this run's. Raises ResumeError if it holds labels that were made in another way."""
    settings = {
        "version": 1,
        "teachers": {found.name: found.checksums() for found in teachers},
        "side": config.side,
        "confident": config.confident,
        "familiar": config.familiar,
    }
    path = config.out / SETTINGS
    if not path.exists() and (config.out / "train").exists():
        raise ResumeError(f"{config.out} holds a data set that was not made here; name a new --out folder")
    # Each photo's record says who labelled it: other photos may have other teachers.
    settle(path, settings, grows="teachers")
    announce(settings)
