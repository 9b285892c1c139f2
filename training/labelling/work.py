"""The labels of one photo after another, written as they are made; a process of its own may do it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch.utils.data import Dataset

from ptsa_serve.tasks import TASKS
from training.data.files import read_photo
from training.errors import DataError
from training.labelling.base import LabelTeacher
from training.labelling.finding import Found
from training.labelling.journal import Record
from training.labelling.maps import SUFFIXES, encoded, label_of, label_size
from training.labelling.photos import Job, kept
from training.network.checkpoint import write_whole

__all__ = ["Rules", "Work"]


@dataclass(frozen=True)
class Rules:
    """What labels depend on beside photo and teachers; see `training.label.LabelConfig`."""

    side: int
    confident: float
    familiar: float


class Work(Dataset[Record]):
    """`work[i]` labels photo i: files of the layout that `training.data.labelled` reads, below the folder `train`.

    Teachers are opened by the process that needs them first. A photo that cannot be read gives a record of its fault.
    Raises CheckpointError for damaged teachers, OSError for a file that cannot be written.
    """

    def __init__(self, jobs: Sequence[Job], teachers: Sequence[Found], train: Path, rules: Rules) -> None:
        self._jobs, self._found, self._train, self._rules = jobs, teachers, train, rules
        self._teachers: list[LabelTeacher] | None = None

    def __len__(self) -> int:
        return len(self._jobs)

    def __getitem__(self, index: int) -> Record:
        job = self._jobs[index]
        if self._teachers is None:
            self._teachers = [found.open() for found in self._found]
        try:
            # Twice as large as what is kept is more than any teacher looks at.
            photo = read_photo(job.path, at_least=(2 * self._rules.side, 2 * self._rules.side))
        except (OSError, DataError) as error:
            return Record(job.name, job.source, fault=str(error))
        size = label_size(photo.shape[:2], self._rules.side // 2)
        files: dict[str, bytes] = {}
        familiar, tasks = {}, {}
        for found, teacher in zip(self._found, self._teachers, strict=True):
            guesses = teacher(photo)
            familiar[found.name] = round(guesses.familiar, 4)
            if guesses.familiar < self._rules.familiar:
                continue
            for task, guess in guesses.maps.items():
                kind = TASKS[task].kind
                label = label_of(kind, guess, size, self._rules.confident)
                if label.ignored < 1:
                    tasks[task] = {"confidence": label.confidence, "ignored": label.ignored}
                    files[f"{task}/{job.name}{SUFFIXES[kind]}"] = encoded(kind, label.values)
        if files:
            # Last: a folder that is being filled has no label without its photo, but for those at work.
            files[f"image/{job.name}.jpg"] = kept(job.path, photo, self._rules.side)
        for name, content in files.items():
            write_whole(self._train / name, content)
        return Record(job.name, job.source, familiar, tasks, sum(map(len, files.values())))
