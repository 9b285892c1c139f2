"""Files and folders that are written whole or not at all: temporary name, fsync, rename."""

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["replace_file", "replace_folder", "write_file"]


def write_file(path: Path, data: bytes) -> None:
    """Write `data` and wait until it is on the disk; folders above are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        _sync(file.fileno())


def replace_file(path: Path, data: bytes) -> None:
    """Write `path` whole or not at all; a new file has the mode that the umask gives, an old one keeps its own."""
    temporary = _beside(path)
    try:
        write_file(temporary, data)
        _keep_mode(path, temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def replace_folder(out: Path) -> Iterator[Path]:
    """Give a temporary folder beside `out`; at the end it becomes `out`, replacing what was there.

    If the body raises, nothing is left behind and `out` is as it was.
    """
    temporary = _beside(out)
    temporary.mkdir(parents=True)
    try:
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
    _keep_mode(out, temporary)
    old = _beside(out)
    out.replace(old)
    try:
        temporary.replace(out)
    except BaseException:
        old.replace(out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _beside(path: Path) -> Path:
    """A hidden name in the folder of `path` that nobody uses; short, whatever the length of the name."""
    return path.parent / f".{path.name[:32]}.{secrets.token_hex(8)}"


def _keep_mode(old: Path, new: Path) -> None:
    """Give `new` the mode of `old`, if that is there. Not every file system has modes; none is worth a lost file."""
    with suppress(OSError):
        new.chmod(stat.S_IMODE(old.stat().st_mode))


def _sync(handle: int) -> None:
    """Wait for the disk, where the file system knows how to."""
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            raise


def _sync_folder(folder: Path) -> None:
    """Make the rename itself last, where the system lets a folder be opened."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        _sync(handle)
    finally:
        os.close(handle)
