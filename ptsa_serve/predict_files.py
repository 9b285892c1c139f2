"""Photos on disk to folders of maps: what `ptsa predict` does, as functions."""

import json
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ptsa_serve.encoding.encode import Render, meta, render_png, to_npz, to_zip
from ptsa_serve.errors import BadImage, RequestError
from ptsa_serve.files import replace_file
from ptsa_serve.predictor import Predictor
from ptsa_serve.resize import Grid

__all__ = ["FileFormat", "Job", "explain", "find_photos", "plan", "predict_file"]

FileFormat = Literal["png", "npz", "zip"]

_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif"})
_NAMES: dict[str, str] = {"raw": "{task}.png", "color": "{task}.color.png", "overlay": "{task}.overlay.png"}


@dataclass(frozen=True, slots=True)
class Job:
    """One photo, and the folder that its maps go to."""

    photo: Path
    out: Path


def find_photos(source: Path) -> Iterator[tuple[Path, Path]]:
    """(photo, its path below `source`'s folder): `source` itself, or every photo below it, by name; hidden
    ones not.
    """
    if not source.is_dir():
        yield source, Path(source.name)
        return
    for path in sorted(source.rglob("*")):
        below = path.relative_to(source)
        if path.suffix.lower() in _SUFFIXES and not any(part.startswith(".") for part in below.parts):
            yield path, below


def plan(sources: Sequence[Path], out: Path) -> list[Job]:
    """Where the maps of each photo go: into `out` for one photo, else into a folder below it, named as the
    photo.

    Photos that differ in their suffix alone keep it. Maps below `out` from an earlier run are no photos. Raises
    ValueError where two photos would still share a folder, or `out` is the folder of the photos itself.
    """
    target = out.resolve()
    for source in sources:
        if source.is_dir() and source.resolve() == target:
            raise ValueError(f"{out} holds the photos; name another folder for the maps, such as {out / 'maps'}")
    pairs = [(source, pair) for source in sources for pair in find_photos(source)]
    found = [pair for source, pair in pairs if not (source.is_dir() and pair[0].resolve().is_relative_to(target))]
    if len(sources) == len(found) == 1 and not sources[0].is_dir():
        return [Job(found[0][0], out)]
    counts = Counter(below.with_suffix("") for _, below in found)
    jobs = [
        Job(photo, out / (below if counts[below.with_suffix("")] > 1 else below.with_suffix("")))
        for photo, below in found
    ]
    taken: dict[Path, Path] = {}
    for job in jobs:
        if job.out in taken:
            raise ValueError(f"{taken[job.out]} and {job.photo} would both go to {job.out}; give them one at a time")
        taken[job.out] = job.photo
    return jobs


def predict_file(
    predictor: Predictor,
    job: Job,
    *,
    tasks: Sequence[str] | None = None,
    renders: Collection[Render] = ("raw", "color", "overlay"),
    form: FileFormat = "png",
    size: Grid = "photo",
) -> None:
    """Write the maps of one photo: PNG files by `renders`, or one maps.npz or maps.zip; meta.json last.

    Each file is written whole or not at all. Raises the errors of `Predictor.predict`, BadImage for a file
    that cannot be read, and OSError where nothing can be written.
    """
    try:
        data = job.photo.read_bytes()
    except OSError as error:
        raise BadImage(f"the file cannot be read ({error.strerror}); check that it exists and may be read") from None
    prepared = predictor.prepare(data, keep_image=form == "png" and "overlay" in renders)
    prediction = predictor.finish(prepared, predictor.run([prepared])[0], tasks, size)
    if form == "npz":
        replace_file(job.out / "maps.npz", to_npz(prediction))
    elif form == "zip":
        replace_file(job.out / "maps.zip", to_zip(prediction))
    else:
        for task in prediction.maps:
            for how in renders:
                image = render_png(prediction, task, how, image=prepared.image)
                replace_file(job.out / _NAMES[how].format(task=task), image)
    replace_file(job.out / "meta.json", json.dumps(meta(prediction), indent=1).encode() + b"\n")


def explain(job: Job, error: RequestError) -> str:
    """One line for a photo that could not be done."""
    return f"{job.photo}: {error.detail}"
