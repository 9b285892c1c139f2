"""Which engine is the fastest here: every one that is installed is checked and timed, and the choice is remembered.

What is fast differs from machine to machine (bf16 halves the time on one CPU and costs on another), so it is measured,
never assumed. An engine or precision that does not reproduce the model's sample is left out.
"""

import hashlib
import json
import platform
import time
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

from ptsa_serve import __version__
from ptsa_serve.artifact import Artifact
from ptsa_serve.cache import cache_folder
from ptsa_serve.cores import usable_cores
from ptsa_serve.engines import ENGINES, EngineOptions, load_engine
from ptsa_serve.errors import EngineError, PTSAError
from ptsa_serve.files import replace_file
from ptsa_serve.predictor import Predictor, Prepared

__all__ = ["Timing", "candidates", "fastest", "recall", "remember", "time_engines"]

_REST = 0.1  # seconds
_RUNS = 4
_ALIKE = 1.05
_HOPELESS = 1.4  # of the least time: what runs differ by on a shared machine, and more
_BITS = {"fp32": 32, "fp16": 16, "bf16": 16, "int8": 8}


@dataclass(frozen=True, slots=True)
class Timing:
    """What came of one engine with one form of the model.

    alone_ms: median time of a photo on all cores. crowd_ms: time a photo where as many as the engine has lanes are run
    side by side. error: the worst of its maps on the sample, as `Predictor.verify` has it. refused: why it was left
    out; there are no figures then.
    """

    engine: str
    version: str
    precision: str
    branches: str
    alone_ms: float | None = None
    crowd_ms: float | None = None
    error: float | None = None
    refused: str = ""

    def __str__(self) -> str:
        return f"{self.engine} {self.version}, {self.precision}, {self.branches} branches"


def candidates(artifact: Artifact, options: EngineOptions) -> list[tuple[str, EngineOptions]]:
    """Every engine that is installed, in every form that it offers and that `options` allow.

    Where memory is preferred, those that pack are left out, if there is another.
    """
    found = [
        (name, replace(options, precision=offer.precision, branches=offer.branches))
        for name, row in ENGINES.items()
        for offer in row.offers(artifact)
        if options.precision in (None, offer.precision) and options.branches in (None, offer.branches)
    ]
    lean = [(name, each) for name, each in found if not ENGINES[name].packs]
    return lean if lean and options.prefer == "memory" else found


def time_engines(
    artifact: Artifact, found: Sequence[tuple[str, EngineOptions]], *, seconds: float = 8.0
) -> list[Timing]:
    """Run the sample on each in turn, for about `seconds` in all; the fastest first, what was left out last."""
    started: list[tuple[Timing, Predictor]] = []
    timings = []
    for name, options in found:
        timing, predictor = _start(artifact, name, options)
        if predictor is None:
            timings.append(timing)
        else:
            started.append((timing, predictor))
    if started:
        photo = started[0][1].prepare(artifact.sample()[0])
        rounds = _rounds([predictor for _, predictor in started], photo, seconds)
        timings += [
            replace(timing, alone_ms=1000 * median(alone), crowd_ms=1000 * median(crowd))
            for (timing, _), (alone, crowd) in zip(started, rounds, strict=True)
        ]
    for _, predictor in started:
        predictor.engine.close()
    return sorted(timings, key=lambda timing: float("inf") if timing.alone_ms is None else timing.alone_ms)


def fastest(timings: Sequence[Timing]) -> Timing:
    """The one with the least time for a photo alone; of those within 5 % of it, which timings differ by from one time
    to the next, the one with the fewest bits, which takes the least memory. Raises EngineError if all were left out.
    """
    times = [timing.alone_ms for timing in timings if timing.alone_ms is not None]
    if not times:
        reasons = "; ".join(f"{timing}: {timing.refused}" for timing in timings)
        raise EngineError(f"no engine runs this model here ({reasons or 'none is installed'}); install one")
    alike = [timing for timing in timings if timing.alone_ms is not None and timing.alone_ms <= _ALIKE * min(times)]
    return min(alike, key=lambda timing: (_BITS[timing.precision], timing.alone_ms))


def recall(artifact: Artifact, found: Sequence[tuple[str, EngineOptions]]) -> Timing | None:
    """What was chosen before among the same candidates, for the same model on the same machine; None: nothing."""
    try:
        return Timing(**json.loads(_place(artifact, found).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def remember(artifact: Artifact, found: Sequence[tuple[str, EngineOptions]], timing: Timing) -> None:
    """Raises OSError where the cache cannot be written to."""
    place = _place(artifact, found)
    place.parent.mkdir(parents=True, exist_ok=True)
    replace_file(place, json.dumps(asdict(timing)).encode() + b"\n")


def _start(artifact: Artifact, name: str, options: EngineOptions) -> tuple[Timing, Predictor | None]:
    asked = Timing(name, ENGINES[name].version(), str(options.precision), str(options.branches))
    try:
        predictor = Predictor(artifact, load_engine(name, artifact, options))
    except PTSAError as error:
        return replace(asked, refused=str(error)), None
    try:
        # First: once there is what a photo alone runs on, engines make this one in the background of what is timed.
        predictor.run([predictor.prepare(artifact.sample()[0])], alone=predictor.engine.lanes == 1)
        return replace(asked, error=max(predictor.verify().values())), predictor
    except PTSAError as error:
        predictor.engine.close()
        return replace(asked, refused=str(error)), None


def _rounds(predictors: Sequence[Predictor], photo: Prepared, seconds: float) -> list[tuple[list[float], list[float]]]:
    """Seconds a photo of each predictor, alone and in a crowd, in turn; the first round does not count.

    Each begins with a rest and a run that is not timed: threads of some runtimes spin on for longer than a run takes,
    and would slow down the next by a third. After three rounds the time is left to those that may be the fastest.
    """
    times: list[tuple[list[float], list[float]]] = [([], []) for _ in predictors]
    end = time.monotonic() + seconds
    number = 0
    left = list(zip(predictors, times, strict=True))
    with ThreadPoolExecutor(max(predictor.engine.lanes for predictor in predictors)) as pool:
        while number < 3 or time.monotonic() < end:
            if number == 3:
                least = min(min(alone) for _, (alone, _) in left)
                left = [each for each in left if min(each[1][0]) < _HOPELESS * least]
            for predictor, (alone, crowd) in left:
                time.sleep(_REST)
                predictor.run([photo])
                began = time.perf_counter()
                predictor.run([photo])
                if number:
                    alone.append(time.perf_counter() - began)
                    crowd.append(_crowd(predictor, photo, pool))
            number += 1
    return times


def _crowd(predictor: Predictor, photo: Prepared, pool: Executor) -> float:
    """Seconds a photo where as many run side by side as may, each lane several: threads take a run to get going."""
    lanes = predictor.engine.lanes

    def run(_: int) -> None:
        for _ in range(_RUNS):
            predictor.run([photo], alone=lanes == 1)

    began = time.perf_counter()
    list(pool.map(run, range(lanes)))
    return (time.perf_counter() - began) / (lanes * _RUNS)


def _place(artifact: Artifact, found: Sequence[tuple[str, EngineOptions]]) -> Path:
    """A file for everything that the choice depends on."""
    known = {
        "program": __version__,
        "model": hashlib.sha256((artifact.folder / "manifest.json").read_bytes()).hexdigest(),
        "machine": [platform.machine(), _cpu(), usable_cores()],
        "engines": [[name, ENGINES[name].version(), asdict(options)] for name, options in found],
    }
    digest = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()
    return cache_folder() / "engines" / f"{digest[:32]}.json"


def _cpu() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    lines = dict(line.split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line)
    facts = {name.strip(): value.strip() for name, value in lines.items()}
    # Two machines of one name may differ in what they can compute.
    return f"{facts.get('model name', platform.processor())} {facts.get('flags', '')}"
