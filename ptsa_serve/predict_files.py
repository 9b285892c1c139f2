"""Photos on disk to folders of maps: what `ptsa predict` does, as functions."""

import json
import os
import stat
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ptsa_serve.encoding.encode import Render, meta, render_png, to_npz, to_zip
from ptsa_serve.errors import BadImage, PTSAError, RequestError, TooLarge
from ptsa_serve.files import replace_file
from ptsa_serve.photo_folders import find_photos, map_names, shown
from ptsa_serve.predictor import Predictor
from ptsa_serve.resize import Grid

__all__ = ["FileFormat", "Job", "PlanError", "check_outputs", "explain", "file_names", "plan", "predict_file"]

FileFormat = Literal["png", "npz", "zip"]
RENDERS: tuple[Render, ...] = ("raw", "color", "overlay")


class PlanError(PTSAError, ValueError):
    """The maps cannot go where they were to go."""


@dataclass(frozen=True, slots=True)
class Job:
    """One photo, and the folder that its maps go to."""

    photo: Path
    out: Path


def plan(sources: Sequence[Path], out: Path, report: Callable[[str], None] = lambda line: None) -> list[Job]:
    """Where the maps of each photo go: into `out` for one photo, else into a folder below it, named as the
    photo.

    A photo keeps its suffix in that name where another photo, or a folder of photos, would have the same name
    without it. `report` is told what was skipped. Raises PlanError where two photos would still share a folder, or
    `out` is the folder of the photos itself.
    """
    target = out.resolve()
    found: dict[str, tuple[Path, Path]] = {}
    for source in sources:
        folder = source.resolve()
        if source.is_dir() and folder == target:
            raise PlanError(
                f"{shown(out)} holds the photos; name another folder for the maps, such as {shown(out / 'maps')}"
            )
        below = find_photos(source, target if target.is_relative_to(folder) else None)
        if below.skipped:
            report(f"skipped below {shown(source)}: {below}")
        # A photo that is named twice, or lies in a folder that is named too, is done once.
        for photo, name in below.photos:
            found.setdefault(os.path.abspath(photo), (photo, name))  # noqa: PTH100 - `resolve` would follow links
    if len(sources) == len(found) == 1 and not sources[0].is_dir():
        return [Job(photo, out) for photo, _ in found.values()]
    taken = _taken(name for _, name in found.values())
    jobs = [
        Job(photo, out / (name if taken[_key(name.with_suffix(""))] > 1 else name.with_suffix("")))
        for photo, name in found.values()
    ]
    _check_distinct(jobs, out)
    return jobs


def check_outputs(jobs: Sequence[Job], names: Collection[str], model: Path) -> None:
    """Raise PlanError where writing `names` for each job would replace a photo or the model, or could not be done.

    To be called before anything is written. Files are compared by what they are, so links and names in other letters
    are seen through.
    """
    inputs = (*(job.photo for job in jobs), *model.iterdir())
    read = {identity: path for path in inputs if (identity := _identity(path))}
    outs = {job.out for job in jobs}
    for job in jobs:
        for folder in (job.out, *job.out.parents):
            if folder.name in names and folder.parent in outs:
                raise PlanError(f"{shown(folder)} would be a map and a folder of maps; give the photos one at a time")
            if os.path.lexists(folder) and not folder.is_dir():
                raise PlanError(f"{shown(folder)} is no folder; name another one for the maps")
        for path in (job.out / name for name in names) if job.out.exists() else ():
            identity = _identity(path)
            if identity in read:
                what = f"would replace {shown(read[identity])}, which is read"
                raise PlanError(f"writing {shown(path)} {what}; name another folder for the maps")
            if identity and not path.is_file():
                raise PlanError(f"{shown(path)} is in the way and no file; name another folder for the maps")


def file_names(tasks: Sequence[str], renders: Collection[Render], form: FileFormat) -> list[str]:
    """Names of the files that `predict_file` writes, meta.json last."""
    maps = list(map_names(tasks, renders).values()) if form == "png" else [f"maps.{form}"]
    return [*maps, "meta.json"]


def predict_file(
    predictor: Predictor,
    job: Job,
    *,
    tasks: Sequence[str] | None = None,
    renders: Collection[Render] = RENDERS,
    form: FileFormat = "png",
    size: Grid = "photo",
) -> None:
    """Write the maps of one photo: PNG files by `renders`, or one maps.npz or maps.zip; meta.json last.

    Each file is written whole or not at all. Raises the errors of `Predictor.predict`, BadImage for a file
    that cannot be read, and OSError where nothing can be written.
    """
    data = _read(job.photo, predictor.limits.max_bytes)
    prepared = predictor.prepare(data, keep_image=form == "png" and "overlay" in renders)
    prediction = predictor.finish(prepared, predictor.run([prepared], tasks)[0], tasks, size)
    if form == "npz":
        replace_file(job.out / "maps.npz", to_npz(prediction))
    elif form == "zip":
        replace_file(job.out / "maps.zip", to_zip(prediction))
    else:
        for (task, how), name in map_names(prediction.maps, renders).items():
            replace_file(job.out / name, render_png(prediction, task, how, image=prepared.image))
    replace_file(job.out / "meta.json", json.dumps(meta(prediction), indent=1).encode() + b"\n")


def explain(job: Job, error: RequestError) -> str:
    """One line for a photo that could not be done."""
    return f"{shown(job.photo)}: {error.detail}"


def _read(photo: Path, limit: int) -> bytes:
    """The bytes of a file. Raises BadImage where it cannot be read (a pipe could wait for ever), TooLarge."""
    try:
        status = photo.stat()
        if not stat.S_ISREG(status.st_mode):
            raise BadImage("this is no file but a pipe, socket or device; save the photo to a file first")
        if status.st_size > limit:
            raise TooLarge(f"the file has {status.st_size} bytes, at most {limit} are allowed (PTSA_MAX_BYTES)")
        with photo.open("rb") as file:
            return file.read(limit + 1)
    except OSError as error:
        raise BadImage(f"the file cannot be read ({error.strerror}); check that it exists and may be read") from None


def _taken(names: Iterable[Path]) -> Counter[str]:
    """How many photos or folders have each name: of photos with their suffix and without it, of folders that hold
    photos. By `_key`.
    """
    taken: Counter[str] = Counter()
    folders: set[Path] = set()
    for name in names:
        taken.update({_key(name), _key(name.with_suffix(""))})
        folders.update(name.parents)
    taken.update(_key(folder) for folder in folders)
    return taken


def _check_distinct(jobs: Sequence[Job], out: Path) -> None:
    """Raise PlanError where two jobs share a folder."""
    outs = {job.out for job in jobs}
    name = _key if len(set(map(_key, outs))) < len(outs) and _folds_case(out) else str
    first: dict[str, Job] = {}
    for job in jobs:
        other = first.setdefault(name(job.out), job)
        if other is not job:
            pair = f"{shown(other.photo)} and {shown(job.photo)}"
            raise PlanError(f"{pair} would both go to {shown(job.out)}; give them one at a time")


def _key(path: Path) -> str:
    """The same for names that some file systems take for one: A and a, and é in its two forms."""
    return unicodedata.normalize("NFC", str(path)).casefold()


def _folds_case(out: Path) -> bool:
    """Whether the file system of `out` takes A and a for one name; asked of the nearest folder that exists."""
    folder = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.is_dir())
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".PTSA") as probe:
            return Path(probe).with_name(Path(probe).name.swapcase()).exists()
    except OSError:
        return False  # Nothing can be written there anyway, which writing will say.


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and number of the file behind `path`; None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
