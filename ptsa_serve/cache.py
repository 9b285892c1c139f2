"""Where things are kept that can be made again: what was compiled or measured for this machine."""

import os
from pathlib import Path

__all__ = ["cache_folder"]


def cache_folder() -> Path:
    """This program's folder of the user's cache (XDG Base Directory Specification); it need not exist."""
    named = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(named) if Path(named).is_absolute() else Path.home() / ".cache") / "ptsa-serve"
