"""How many cores this process may use: affinity and cpuset, and the CPU quota of its control groups (containers)."""

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

__all__ = ["usable_cores"]


def usable_cores(root: Path = Path("/")) -> int:
    """Cores that this process may keep busy, at least 1; a part of a core counts as one.

    The smallest of the cores it may be scheduled on and the quotas of its control group and of every group around
    it, versions 1 and 2. `root` is where /proc and the mount points lie (tests have trees of their own).
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = min((_quota(group) for group in _groups(root)), default=math.inf)
    return allowed if quota == math.inf else max(1, min(allowed, math.ceil(quota)))


def _groups(root: Path) -> Iterator[Path]:
    """The folder of each control group that this process is in and that may limit its CPU time, and those above."""
    paths = {}
    # "4:cpu,cpuacct:/pod/container" (version 1), "0::/pod/container" (version 2).
    for line in _lines(root / "proc/self/cgroup"):
        number, controllers, path = line.split(":", 2)
        if number == "0" or "cpu" in controllers.split(","):
            paths["cgroup2" if number == "0" else "cgroup"] = PurePosixPath(path)
    for line in _lines(root / "proc/self/mountinfo"):
        # id parent device root mount-point options [optional...] - type source super-options
        mount, _, system = line.partition(" - ")
        kind, *_, options = system.split(" ")
        if kind not in paths or (kind == "cgroup" and "cpu" not in options.split(",")):
            continue
        shown, point = (PurePosixPath(_unescaped(part)) for part in mount.split(" ")[3:5])
        top = root / point.relative_to("/")
        # Containers see their own group alone at the mount point, whatever its path outside is.
        below = paths[kind].relative_to(shown) if paths[kind].is_relative_to(shown) else PurePosixPath()
        yield from (top / part for part in (below, *below.parents) if ".." not in part.parts)


def _quota(group: Path) -> float:
    """Cores worth of time that `group` may use; infinite where it has no limit."""
    try:
        if (group / "cpu.max").exists():
            limit, period = (group / "cpu.max").read_text().split()
        else:
            limit, period = ((group / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        cores = int(limit) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        # No limit ("max"), no such file, or one that a later kernel writes in another way.
        return math.inf
    return cores if cores > 0 else math.inf


def _lines(path: Path) -> list[str]:
    """Empty where there is no such file: other systems, and containers that hide it."""
    try:
        return path.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return []


def _unescaped(text: str) -> str:
    """The kernel writes spaces and the like in paths as \\040."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
