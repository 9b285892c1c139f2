"""A teacher by its name and the folder of its files, with what is missing said before anything is computed."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from training.errors import ConfigError
from training.labelling import TEACHERS
from training.labelling.base import LabelTeacher, TeacherKind
from training.network.checkpoint import sha256

__all__ = ["Found", "find_files", "find_teachers"]


@dataclass(frozen=True)
class Found:
    """A teacher whose files are all there. paths: in the order of `kind.files`."""

    name: str
    kind: TeacherKind
    paths: tuple[Path, ...]

    def open(self) -> LabelTeacher:
        """Load it. Raises CheckpointError for damaged files."""
        return self.kind.open(*self.paths)

    def checksums(self) -> Mapping[str, str]:
        """sha256 by the name of the file."""
        return {path.name: sha256(path) for path in self.paths}


def find_teachers(texts: Sequence[str]) -> list[Found]:
    """Teachers by `NAME=FOLDER`. Raises ConfigError for unknown ones, FileNotFoundError for files that are missing."""
    found = [_find(text) for text in texts]
    known: dict[str, str] = {}
    for teacher in found:
        for task in teacher.kind.tasks:
            if task in known:
                raise ConfigError(
                    f"--teachers: {known[task]} and {teacher.name} both label {task}, and a photo has one label of it; "
                    "name one of the two"
                )
            known[task] = teacher.name
    return found


def _find(text: str) -> Found:
    name, equals, folders = text.partition("=")
    if not equals or name not in TEACHERS:
        raise ConfigError(f"--teachers has {text!r}; a teacher is NAME=FOLDER, and known are {', '.join(TEACHERS)}")
    kind = TEACHERS[name]
    return Found(name, kind, find_files(name, folders, kind.files, kind.modules))


def find_files(teacher: str, folders: str, names: Sequence[str], modules: Mapping[str, str]) -> tuple[Path, ...]:
    """Where a teacher's files of these names lie: in FOLDER, or FIRST:SECOND, or in a folder right below.

    Raises ConfigError for a module that is not installed (see `TeacherKind`), or a name that two files have,
    FileNotFoundError for a file that is missing.
    """
    for module, package in modules.items():
        if find_spec(module) is None:
            raise ConfigError(f"teacher {teacher} needs {module}; install it with `pip install {package}`")
    # Of several folders the first that has a file counts: a head of one's own beside the frozen networks.
    places = [Path(folder) for folder in folders.split(os.pathsep)]
    return tuple(_file(teacher, places, name) for name in names)


def _file(teacher: str, places: Sequence[Path], name: str) -> Path:
    """In the first of the folders that has it, or in a folder right below that."""
    for place in places:
        paths = [path for path in (place / name, *sorted(place.glob(f"*/{name}"))) if path.is_file()]
        if len(paths) > 1 and paths[0].parent != place:
            raise ConfigError(f"teacher {teacher}: {paths[0]} and {paths[1]} are both called {name}; name one's folder")
        if paths:
            return paths[0]
    searched = " or ".join(map(str, places))
    raise FileNotFoundError(f"teacher {teacher}: no file {name} in {searched}, nor in a folder right below")
