"""What a measurement of task similarity found: matrices a stage and over all stages, and how sure they are."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from training.errors import ConfigError
from training.network.checkpoint import write_whole
from training.similarity.measures import MEASURES

__all__ = ["Measure", "Scope", "Similarity", "Skipped", "read_similarity", "scopes", "write_similarity"]

Measure = Literal["unit", "weighted", "plain_cosine"]

# Which matrices decide about a stage: its own, or at every stage the one of all stages.
Scope = Literal["stage", "global"]

VERSION = 1


@dataclass(frozen=True)
class Skipped:
    """Batches that gave a task no gradient to compare, by reason."""

    unlabelled: int = 0
    zero: int = 0  # in some stage
    not_finite: int = 0


@dataclass(frozen=True, eq=False)
class Similarity:
    """Similarities of T tasks in S stages: arrays (S + 1, T, T), a stage each and then all stages as one vector.

    mean, error: by measure, -1...1; mean over batches and its standard error; 1 and 0 on the diagonal. count: batches
    behind each value. skipped: by task. seconds: what measuring took, warm_up_seconds: the warm-up before it (of one
    that was stopped, the rest). settings: all that the figures depend on, as JSON; empty for those of an older version.
    """

    tasks: tuple[str, ...]
    mean: Mapping[str, NDArray[np.float64]]
    error: Mapping[str, NDArray[np.float64]]
    count: NDArray[np.int64]
    skipped: Mapping[str, Skipped]
    batches: int
    seconds: float
    warm_up_seconds: float = 0.0
    settings: Mapping[str, Any] = field(default_factory=dict)

    def stages(self, measure: Measure = "unit", scope: Scope = "stage") -> NDArray[np.float64]:
        """The means that decide about each stage, (S, T, T)."""
        return _of_stages(self.mean[measure], scope)

    def errors(self, measure: Measure = "unit", scope: Scope = "stage") -> NDArray[np.float64]:
        """Standard errors of `stages`."""
        return _of_stages(self.error[measure], scope)

    def to_json(self) -> dict[str, Any]:
        """All of it, each matrix under the name of its stage."""
        names = scopes(len(self.count) - 1)
        measures = {
            measure: {
                name: {"mean": self.mean[measure][i].tolist(), "standard_error": self.error[measure][i].tolist()}
                for i, name in enumerate(names)
            }
            for measure in MEASURES
        }
        return {
            "version": VERSION,
            "tasks": list(self.tasks),
            "batches": self.batches,
            "seconds": self.seconds,
            "warm_up_seconds": self.warm_up_seconds,
            "settings": dict(self.settings),
            "skipped": {task: asdict(skipped) for task, skipped in self.skipped.items()},
            "count": dict(zip(names, self.count.tolist(), strict=True)),
            "similarity": measures,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Similarity":
        """Inverse of `to_json`. Raises ConfigError for another version, KeyError, TypeError or ValueError for less."""
        if data.get("version") != VERSION:
            raise ConfigError(f"similarities of version {data.get('version')!r}; this program reads version {VERSION}")
        names = scopes(len(data["count"]) - 1)

        def arrays(key: str) -> dict[str, NDArray[np.float64]]:
            found = data["similarity"]
            return {m: np.array([found[m][name][key] for name in names], np.float64) for m in MEASURES}

        similarity = cls(
            tasks=tuple(data["tasks"]),
            mean=arrays("mean"),
            error=arrays("standard_error"),
            count=np.array([data["count"][name] for name in names], np.int64),
            skipped={task: Skipped(**skipped) for task, skipped in data["skipped"].items()},
            batches=data["batches"],
            seconds=data["seconds"],
            warm_up_seconds=data.get("warm_up_seconds", 0.0),
            settings=data.get("settings", {}),
        )
        shape = (len(names), len(similarity.tasks), len(similarity.tasks))
        for array in (similarity.count, *similarity.mean.values(), *similarity.error.values()):
            if array.shape != shape or not np.isfinite(array).all():
                raise ValueError(f"a matrix of shape {array.shape}, wanted finite values of {shape}")
        return similarity


def scopes(stages: int) -> list[str]:
    """Names of the S + 1 matrices."""
    return [*(f"stage {number}" for number in range(1, stages + 1)), "all stages"]


def write_similarity(path: Path, similarity: Similarity) -> None:
    """Write it as JSON, whole or not at all. Raises OSError that names the file."""
    write_whole(path, (json.dumps(similarity.to_json(), allow_nan=False, indent=1) + "\n").encode())


def read_similarity(path: Path) -> Similarity:
    """What `write_similarity` wrote. Raises FileNotFoundError, or ConfigError for a file of another kind."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of similarities; `python -m training similarity` writes one")
    try:
        return Similarity.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{path} does not hold similarities that can be used ({error}); measure them again with "
            "`python -m training similarity`"
        ) from None


def _of_stages(matrices: NDArray[np.float64], scope: Scope) -> NDArray[np.float64]:
    return matrices[:-1] if scope == "stage" else np.repeat(matrices[-1:], len(matrices) - 1, axis=0)
