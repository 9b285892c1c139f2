"""The gate before a lower precision: what each task's own metric on labelled photos may lose by it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from export.errors import AccuracyError
from ptsa_serve.variants import Precision
from training.scoring.metrics import Figures

__all__ = ["ALLOWED", "Loss", "check", "losses"]

# Of a task's own metric, relative to fp32.
ALLOWED: dict[Precision, float] = {"fp16": 0.01, "bf16": 0.01, "int8": 0.02}


@dataclass(frozen=True, slots=True)
class Loss:
    """One task on one data set: its figure in fp32 (`before`) and in the lower precision (`after`)."""

    data: str
    task: str
    figure: str
    before: float
    after: float

    @property
    def share(self) -> float:
        """By what part of it the figure is worse; below 0 where it is better. Infinite for what is no number."""
        worse = self.before - self.after if self.figure.endswith("_percent") else self.after - self.before
        if math.isnan(worse) or (worse > 0 and not self.before):
            return math.inf
        return worse / self.before if worse else 0.0

    def __str__(self) -> str:
        return (
            f"{self.task} on {self.data}: {self.figure} {self.before:.4g} to {self.after:.4g}, {self.share:+.2%} lost"
        )


def losses(before: Mapping[str, Mapping[str, Figures]], after: Mapping[str, Mapping[str, Figures]]) -> list[Loss]:
    """data set -> task -> figures, of fp32 and of the lower precision.

    A task's own metric is its first figure; what had no label in fp32 does not count.
    """
    found = []
    for name, tasks in before.items():
        for task, figures in tasks.items():
            figure, value = next(iter(figures.items()))
            if value is not None:
                lowered = after[name][task][figure]
                found.append(Loss(name, task, figure, value, float("nan") if lowered is None else lowered))
    return found


def check(precision: Precision, found: Sequence[Loss]) -> None:
    """Raise AccuracyError, with task and figures, if a metric lost more than is allowed, or none was measured."""
    if not found:
        raise AccuracyError(f"{precision} was measured on no label; name data sets whose labels the model answers")
    failed = [loss for loss in found if not loss.share <= ALLOWED[precision]]
    if failed:
        figures = "; ".join(map(str, failed))
        raise AccuracyError(f"{precision} loses more than {ALLOWED[precision]:.0%}: {figures}; no artifact is written")
