"""Which files below a folder are photos, and why the others are not."""

import json
import os
import stat
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ptsa_serve.encoding.encode import Render
from ptsa_serve.images import SUFFIXES

__all__ = ["Found", "find_photos", "map_names", "shown"]

_MAPS: dict[Render, str] = {"raw": "{task}.png", "color": "{task}.color.png", "overlay": "{task}.overlay.png"}
# Bytes of a meta.json that is looked into; ours have a few thousand.
_LONGEST_META = 1_000_000


@dataclass(frozen=True, slots=True)
class Found:
    """photos: (path, its path below the folder that was searched), by name. skipped: the others, by the reason."""

    photos: Sequence[tuple[Path, Path]]
    skipped: Mapping[str, Sequence[Path]]

    def __str__(self) -> str:
        """What was skipped and why, how many and the first names; empty if nothing was."""
        parts = []
        for reason, paths in self.skipped.items():
            names = sorted({path.suffix.lower() or path.name if reason == _OTHER else path.name for path in paths})
            more = ", ..." if len(names) > 5 else ""
            parts.append(f"{reason}: {len(paths)} ({', '.join(map(shown, names[:5]))}{more})")
        return "; ".join(parts)


_OTHER = "not named like a photo"
_HIDDEN = "hidden"
_EARLIER = "of an earlier run"
_SPECIAL = "pipes, sockets or devices"
_LINK = "links to folders"
_CLOSED = "folders that cannot be read"


def find_photos(source: Path, maps: Path | None = None) -> Found:
    """`source` itself, whatever its name, or every photo below it. `maps` (resolved): a folder to leave out.

    Links to photos count, links to folders do not: they may lead in circles. A photo that cannot be read counts too:
    reading it says why.
    """
    if not source.is_dir():
        return Found([(source, Path(source.name))], {})
    photos: list[tuple[Path, Path]] = []
    skipped: defaultdict[str, list[Path]] = defaultdict(list)
    refused = lambda error: skipped[_CLOSED].append(Path(error.filename))  # noqa: E731
    for name, folders, files in os.walk(source, onerror=refused):
        folder = Path(name)
        for child in tuple(folders):
            reason = _why_not_entered(folder / child, maps)
            if reason:
                folders.remove(child)
                skipped[reason].append(folder / child)
        made = _maps_in(folder) if "meta.json" in files else frozenset()
        for child in files:
            path = folder / child
            reason = _EARLIER if child in made else _why_no_photo(path)
            if reason:
                skipped[reason].append(path)
            else:
                photos.append((path, path.relative_to(source)))
    return Found(sorted(photos), skipped)


def map_names(tasks: Collection[str], renders: Collection[Render]) -> dict[tuple[str, Render], str]:
    """Names of the PNG files of `tasks`, by task and render."""
    return {(task, how): _MAPS[how].format(task=task) for task in tasks for how in _MAPS if how in renders}


def shown(path: Path | str) -> str:
    """A path as it may be printed: names can hold line ends, escape sequences and bytes that are no text."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in str(path))


def _why_not_entered(folder: Path, maps: Path | None) -> str | None:
    if folder.name.startswith("."):
        return _HIDDEN
    if folder.is_symlink():
        return _LINK
    return _EARLIER if maps is not None and folder.resolve() == maps else None


def _why_no_photo(path: Path) -> str | None:
    if path.name.startswith("."):
        return _HIDDEN
    if path.suffix.lower() not in SUFFIXES:
        return _OTHER
    try:
        return None if stat.S_ISREG(path.stat().st_mode) else _SPECIAL
    except OSError:
        # A link that leads nowhere, or a file in a folder that may be listed but not entered.
        return None


def _maps_in(folder: Path) -> frozenset[str]:
    """Names of the files of an earlier run in `folder`, by its meta.json; empty if that is not ours."""
    path = folder / "meta.json"
    try:
        if not path.is_file() or path.stat().st_size > _LONGEST_META:
            return frozenset()
        meta = json.loads(path.read_bytes())
        if not meta.keys() >= {"model", "photo", "tasks"}:
            return frozenset()
        return frozenset({"meta.json", *map_names(meta["tasks"], _MAPS).values()})
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):
        return frozenset()
