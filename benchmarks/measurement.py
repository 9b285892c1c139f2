"""What is written down of a measurement: the question, the figures, and the conditions that they hold under."""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ptsa_serve.cores import usable_cores
from ptsa_serve.files import replace_file

__all__ = ["Measurement", "alternate", "is_measurement", "median_ms", "save", "table"]

# One of the two ONNX Runtimes is there.
_PACKAGES = ("onnxruntime", "onnxruntime-gpu", "openvino", "bentoml", "numpy", "pillow")

_REST = 0.1  # seconds


@dataclass(frozen=True)
class Measurement:
    """`figures`: name -> number, the unit in the name (`_ms`, `_percent`, `_per_second`, `_ratio`); None: no figure.

    Where a question has many answers of one kind: what each is of -> its figures.
    """

    question: str
    figures: Mapping[str, Any]
    conditions: dict[str, str | int | float]
    machine: dict[str, str | int] = field(default_factory=lambda: _machine())


def table(measurement: Measurement) -> str:
    """The question, a line a figure, and the conditions."""
    width = max(map(len, measurement.figures))
    conditions = {**measurement.conditions, **measurement.machine}
    lines = [
        f"  {name:<{width}}  {'none' if value is None else f'{value:.4g}'}"
        for name, value in measurement.figures.items()
    ]
    return "\n".join([measurement.question, *lines, "  " + ", ".join(f"{k} {v}" for k, v in conditions.items())])


def save(measurement: Measurement, out: Path | None) -> None:
    """Write the measurement as JSON if `out` names a file. Raises ValueError for a figure that is no number."""
    if out is not None:
        replace_file(out, json.dumps(asdict(measurement), indent=1, allow_nan=False).encode() + b"\n")


def is_measurement(path: Path) -> bool:
    """Whether `save` wrote the file: it may be replaced by a newer one, a photo or a manifest may not."""
    try:
        return {"question", "figures", "conditions"} <= json.loads(path.read_bytes()).keys()
    except (OSError, ValueError, AttributeError):
        return False


def median_ms(seconds: list[float]) -> float:
    ordered = sorted(seconds)
    return 1000 * ordered[len(ordered) // 2]


def alternate(runs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Milliseconds of each run: the medians of `rounds` rounds, after one that warms up.

    Before each the machine rests, and it is run twice and timed the second time. The first run pays for what another
    left behind, emptied caches; threads of another runtime spin on for longer than a run takes, which cost a third.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for round_number in range(rounds + 1):
        for name, run in runs.items():
            time.sleep(_REST)
            run()
            start = time.perf_counter()
            run()
            if round_number:
                times[name].append(time.perf_counter() - start)
    return {name: median_ms(values) for name, values in times.items()}


def _machine() -> dict[str, str | int]:
    facts: dict[str, str | int] = {
        "cpu": _cpu(),
        "cores": usable_cores(),
        "load_average": f"{os.getloadavg()[0]:.1f}",
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
        "commit": _commit(),
    }
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):
            facts[name] = version(name)
    return facts


def _cpu() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit() -> str:
    answer = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return answer.stdout.strip() or "unknown"
