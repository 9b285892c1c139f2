"""Files and folders that are written whole or not at all: temporary name, fsync, rename."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["replace_file", "replace_folder", "write_file"]


def write_file(path: Path, data: bytes) -> None:
    """Write `data` and wait until it is on the disk; folders above are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, data: bytes) -> None:
    """Write `path` whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        write_file(temporary, data)
        # mkstemp makes files that their owner alone can read; these are for whoever may read the folder.
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def replace_folder(out: Path) -> Iterator[Path]:
    """Give a temporary folder beside `out`; at the end it becomes `out`, replacing what was there.

    If the body raises, nothing is left behind and `out` is as it was.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        temporary.chmod(0o755)
        yield temporary
        _swap(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    _sync_folder(out.parent)


def _swap(temporary: Path, out: Path) -> None:
    """A folder that is not empty cannot be renamed over: the old one steps aside first, and back if that
    fails.
    """
    if not out.exists():
        temporary.replace(out)
        return
    old = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.old."))
    out.replace(old)
    try:
        temporary.replace(out)
    except BaseException:
        old.replace(out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    """Make the rename itself last, where the system lets a folder be opened."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
