"""Which form of the branches to keep: both are timed as they would be served, on the engines of this machine."""

from collections.abc import Mapping
from dataclasses import dataclass

from export.errors import ExportError
from ptsa_serve.artifact import Artifact
from ptsa_serve.engines import EngineOptions
from ptsa_serve.selection import candidates, time_engines
from ptsa_serve.variants import Branches

__all__ = ["Measured", "choose", "measure"]


@dataclass(frozen=True, slots=True)
class Measured:
    """bytes: of the large tensors in memory. milliseconds: of a photo on the fastest engine. engine: which that is."""

    bytes: int
    milliseconds: float
    engine: str


def measure(artifact: Artifact) -> dict[Branches, Measured]:
    """Every form of an artifact with a sample, run in turn on all engines for some seconds.

    Raises ExportError for a form that none of them runs.
    """
    timings = time_engines(artifact, candidates(artifact, EngineOptions()))
    found: dict[Branches, Measured] = {}
    for branches, costs in artifact.manifest.counts.forms.items():
        own = [timing for timing in timings if timing.branches == branches]
        done = [timing for timing in own if timing.alone_ms is not None]
        if not done:
            raise ExportError(f"no engine runs the {branches} form here: {'; '.join(one.refused for one in own)}")
        # The fastest comes first.
        found[branches] = Measured(costs.bytes, float(done[0].alone_ms or 0), f"{done[0].engine} {done[0].version}")
    return found


def choose(measured: Mapping[Branches, Measured], max_slowdown: float) -> Branches:
    """The smallest form that takes at most `max_slowdown` times as long as the fastest one; 1 = the fastest."""
    limit = max_slowdown * min(one.milliseconds for one in measured.values())
    return min((b for b, one in measured.items() if one.milliseconds <= limit), key=lambda b: measured[b].bytes)
