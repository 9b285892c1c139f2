"""Whether a folder can be written: asked before the work, not after it."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from export.errors import ExportError

__all__ = ["refuse_folder", "refuse_unwritable"]


def refuse_folder(out: Path, *, inputs: Sequence[Path]) -> None:
    """Raise ExportError if an artifact cannot be written to `out`, or if something would be lost by it.

    An older artifact may be replaced; a folder of anything else must not vanish, nor one that holds an input.
    """
    if out.exists() and not (out / "manifest.json").is_file() and not (out.is_dir() and not any(out.iterdir())):
        raise ExportError(f"{out} exists and is no artifact; name a new folder, or remove this one first")
    for path in inputs:
        if path.resolve().is_relative_to(out.resolve()):
            raise ExportError(f"{path} lies in {out}, which would be replaced; name another folder")
    refuse_unwritable(out)


def refuse_unwritable(out: Path) -> None:
    """Raise ExportError if no folder `out` can be made. Leaves nothing behind."""
    above = next(folder for folder in out.absolute().parents if folder.exists())
    try:
        with tempfile.TemporaryDirectory(dir=above):
            pass
    except OSError as error:
        raise ExportError(f"{out} cannot be written: {above}: {error.strerror}; name another folder") from None
