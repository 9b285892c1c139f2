"""From settings to a predictor: the one place where a model, an engine and limits come together."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ptsa_serve.artifact import Artifact, default_artifact
from ptsa_serve.engines import EngineOptions, load_engine
from ptsa_serve.errors import EngineError
from ptsa_serve.predictor import Predictor
from ptsa_serve.selection import Timing, candidates, fastest, recall, remember
from ptsa_serve.settings import AUTO, Settings

__all__ = ["engine_options", "load_predictor", "open_artifact"]

log = logging.getLogger(__name__)


def open_artifact(settings: Settings) -> Artifact:
    """The model that `settings` name, every file checked. Raises ArtifactError, ManifestError."""
    return Artifact.open(settings.model or default_artifact())


def engine_options(settings: Settings) -> EngineOptions:
    """What `settings` say of whatever engine runs the model."""
    return EngineOptions(
        settings.threads, precision=settings.precision, branches=settings.branches, prefer=settings.prefer
    )


def load_predictor(settings: Settings, *, tune: bool = False) -> Predictor:
    """The model on the engine that `settings` name.

    The engine "auto" is the one that was found to be the fastest here. tune: where that is not known yet, find out,
    which takes about 10 s; else the first that is installed is taken.
    Raises ArtifactError, ManifestError, EngineError.
    """
    artifact = open_artifact(settings)
    name, options = settings.engine, engine_options(settings)
    if name == AUTO:
        name, options = _choose(artifact, options, tune)
    return Predictor(artifact, load_engine(name, artifact, options), settings.limits())


def _choose(artifact: Artifact, options: EngineOptions, tune: bool) -> tuple[str, EngineOptions]:
    found = candidates(artifact, options)
    if not found:
        raise EngineError("no runtime is installed; install one, as in `pip install 'ptsa-serve[cpu]'`")
    if len(found) == 1:
        return found[0]
    timing = recall(artifact, found)
    if timing is None and tune:
        timing = fastest(_timed_elsewhere(artifact, options))
        log.info("%s is taken of %d here: %.0f ms a photo", timing, len(found), timing.alone_ms)
        try:
            remember(artifact, found, timing)
        except OSError as error:
            log.warning("the choice cannot be remembered (%s); it will be made again at the next start", error)
    if timing is None:
        return found[0]
    wanted = (timing.engine, timing.precision, timing.branches)
    return next(each for each in found if (each[0], each[1].precision, each[1].branches) == wanted)


def _timed_elsewhere(artifact: Artifact, options: EngineOptions, seconds: float = 8.0) -> Sequence[Timing]:
    """In a process of its own: what the slower engines took of memory goes with it."""
    asked = ("threads", "precision", "branches", "prefer")
    arguments = [f"--{name}={value}" for name in asked if (value := getattr(options, name))]
    command = [sys.executable, "-m", "ptsa_serve", "tune", "--json", f"--model={artifact.folder}"]
    command += [f"--seconds={seconds}", *arguments]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PTSA_")}
    environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), environ.get("PYTHONPATH")]))
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    if done.returncode:
        raise EngineError(f"no engine could be chosen ({done.stderr.strip()[-300:]}); name one with PTSA_ENGINE")
    return [Timing(**entry) for entry in json.loads(done.stdout)]
