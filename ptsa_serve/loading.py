"""From settings to a predictor: the one place where a model, an engine and limits come together."""

from ptsa_serve.artifact import Artifact, default_artifact
from ptsa_serve.engines import EngineOptions, load_engine
from ptsa_serve.predictor import Predictor
from ptsa_serve.settings import Settings

__all__ = ["load_predictor", "open_artifact"]


def open_artifact(settings: Settings) -> Artifact:
    """The model that `settings` name, every file checked. Raises ArtifactError, ManifestError."""
    return Artifact.open(settings.model or default_artifact())


def load_predictor(settings: Settings) -> Predictor:
    """The model on the engine that `settings` name. Raises ArtifactError, ManifestError, EngineError."""
    artifact = open_artifact(settings)
    options = EngineOptions(threads=settings.threads)
    return Predictor(artifact, load_engine(settings.engine, artifact, options), settings.limits())
